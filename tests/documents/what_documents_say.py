"""What README, docs, recipes and messages say: their code spans, code blocks, comments and literals."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = [path for folder in ("platform", "tune", "registry") for path in sorted((ROOT / folder).rglob("*.py"))]
SCRIPTS = [path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).glob("*.py"))]
RECIPES = sorted((ROOT / "experiments").glob("*.yaml"))
FILES = [
    path
    for folder in ("platform", "tune", "registry", "tests", "docs", "experiments", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*")
    if "__pycache__" not in path.parts
]
RENAMES = "CHANGELOG.md"  # names what is gone on purpose
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def spans(text: str, languages: tuple[str, ...] = ("", "python", "toml", "yaml")) -> Iterator[str]:
    """Code spans and the lines of code blocks, fenced or indented, with continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", text)
    for language, block in FENCED.findall(text):
        yield from block.splitlines() if language in languages else []
    outside = FENCED.sub("", text)
    yield from re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", outside)
    yield from (line.strip() for line in outside.splitlines() if line.startswith("    "))


def python_blocks(path: Path) -> Iterator[ast.Module]:
    yield from (ast.parse(block) for language, block in FENCED.findall(path.read_text()) if language == "python")
    for block in re.findall(r"(?:^    .*\n|^\n)+", FENCED.sub("", path.read_text()), re.M):
        if re.search(r"^    (import|from) \w", block, re.M):
            yield ast.parse(textwrap.dedent(block))


def literals(path: Path) -> Iterator[str]:
    """All texts in a source file: messages, help, docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\\\n\s*", " ", node.value)


REFUSED_NAMES = {RENAMES, "reliability.md"}  # which tell of options that do not exist


def comments(path: Path) -> Iterator[str]:
    """A recipe's comments; lines that one sentence runs over are joined."""
    for block in re.findall(r"(?:^\s*#.*\n)+", path.read_text(), re.M):
        yield re.sub(r"\n# (?! )", " ", block.replace("#   ", "#\n# "))


def texts() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        yield from ((path.name, span) for span in spans(path.read_text()))
    for path in [*SOURCES, *SCRIPTS]:
        for literal in literals(path):
            yield from ((path.name, line.strip()) for line in literal.splitlines())
    for path in RECIPES:
        for comment in comments(path):
            yield from ((path.name, line.strip("# ")) for line in comment.splitlines())


ALL = [(where, " ".join(span.split())) for where, span in texts() if where != RENAMES]


def prose() -> Iterator[tuple[str, str]]:
    """As `ALL`, without Python code, in which a setting's name may be a variable's."""
    for path in DOCUMENTS:
        if path.name not in REFUSED_NAMES:
            yield from ((path.name, span) for span in spans(path.read_text(), ("", "toml", "yaml")))
    documents = {path.name for path in DOCUMENTS}
    yield from ((where, span) for where, span in ALL if where not in documents and where != "renamed_options.py")
