"""README, docs and messages are true: every path, make target, entry point and option that they name exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgequant.__main__ import WORKFLOWS, _known_keys, make_parser, workflow

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = [path for folder in ("platform", "tune", "registry") for path in sorted((ROOT / folder).rglob("*.py"))]
FOLDERS = ("platform", "tune", "registry", "tests", "docs", "experiments", "benchmarks", "examples")
RENAMES = "CHANGELOG.md"  # names what is gone on purpose


def spans(text: str) -> Iterator[str]:
    """Code spans and the lines of code blocks, fenced or indented, with continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", text)
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S):
        yield from block.splitlines()
    outside = re.sub(r"^```[^\n]*\n.*?^```", "", text, flags=re.M | re.S)
    yield from re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", outside)
    yield from (line.strip() for line in outside.splitlines() if line.startswith("    "))


def literals(path: Path) -> Iterator[str]:
    """The texts in a source file that are no docstring of a module are included: messages, help, docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def texts() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        yield from ((path.name, span) for span in spans(path.read_text()))
    for path in [*SOURCES, *sorted((ROOT / "benchmarks").glob("*.py"))]:
        for literal in literals(path):
            yield from ((path.name, line.strip()) for line in literal.splitlines())


TEXTS = [(where, " ".join(span.split())) for where, span in texts()]


def test_every_path_that_is_named_exists():
    missing = []
    for where, span in TEXTS:
        for named in re.findall(rf"(?<![\w/.:-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", span):
            path = ROOT / named
            if where != RENAMES and path.suffix and not path.exists():
                missing.append(f"{where}: {named}")
    assert missing == []


def test_every_source_file_that_a_document_names_exists():
    names = {path.name for path in [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]}
    names |= {path.name for path in (ROOT / "examples").glob("*")}
    named = {
        (path.name, Path(span.split()[0]).name)
        for path in DOCUMENTS
        if path.name != RENAMES
        for span in re.findall(r"`([\w/]+\.py)`", path.read_text())
    }
    assert sorted(pair for pair in named if pair[1] not in names and not pair[1].startswith("my_")) == []


def test_every_link_between_documents_leads_somewhere():
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            if not re.match(r"\w+:", target) and not (path.parent / target).exists():
                broken.append(f"{path.name}: {target}")
    assert broken == []


def commands() -> list[tuple[str, str, str]]:
    """(where, entry point, rest) of every edgequant command and `mlflow run . -e`."""
    found = []
    for where, span in TEXTS:
        for match in re.finditer(r"(?<![\w./-])edgequant ([a-z]+)((?: [^;|`]*)?)", span):
            if match[1] in WORKFLOWS or " --" in match[2]:
                found.append((where, match[1], match[2]))
        for match in re.finditer(r"mlflow run \S+ -e ([a-z]+)([^;|`]*)", span):
            found.append((where, match[1], match[2]))
    return [entry for entry in found if entry[0] != RENAMES]


COMMANDS = commands()
KNOWN: dict[str, set[str]] = {}


def known(name: str) -> set[str]:
    if name not in KNOWN:
        KNOWN[name] = {*_known_keys(make_parser(name, workflow(name))), "help"}
    return KNOWN[name]


def test_there_are_commands_to_check():
    assert len({name for _, name, _ in COMMANDS} & set(WORKFLOWS)) == len(WORKFLOWS)


def test_every_entry_point_that_is_named_exists():
    assert sorted({(where, name) for where, name, _ in COMMANDS if name not in {*WORKFLOWS, "main"}}) == []


def options_in(rest: str) -> list[str]:
    given = re.findall(r"--([a-z][\w.]*)", rest.partition(" #")[0])
    given += re.findall(r"-P ([a-z][\w.]*)=", rest)
    return [option for option in given if option not in ("env", "manager")]


def test_every_option_of_a_command_exists():
    wrong = [
        f"{where}: {name} --{option}"
        for where, name, rest in COMMANDS
        if name in WORKFLOWS
        for option in options_in(rest.replace("--env-manager", ""))
        if option not in known(name) and not option.startswith("KEY")
    ]
    assert sorted({line for line in wrong if "{" not in line}) == []


OWNERS = ("training", "qat", "ptq", "calibration", "evaluation", "lora", "settings")


def test_every_setting_that_is_named_exists():
    """`training.steps` in a document or a message is an option of some entry point."""
    everywhere = {option for name in WORKFLOWS for option in known(name)}
    wrong = {
        (where, named)
        for where, span in TEXTS
        if where != RENAMES and not where.startswith("renamed_options")
        for named in re.findall(rf"(?<![\w./])(?:{'|'.join(OWNERS)})\.[a-z_]+(?![\w(.])", span)
        if named not in everywhere and not (ROOT / "platform" / "edgequant" / named.replace(".", "/")).exists()
    }
    assert sorted(pair for pair in wrong if not pair[1].endswith((".py", ".yaml", ".json"))) == []


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (where, target)
        for where, span in TEXTS
        if where.endswith(".md") or span.startswith("make ")
        for target in re.findall(r"(?:^|[`(&;] ?)make ([a-z][a-z-]+)\b", span)
    }
    assert sorted(pair for pair in named if pair[1] not in targets) == []


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_every_option_of_a_benchmarks_command_exists(path):
    own = set(re.findall(r'add_argument\(\s*"--([\w-]+)"', path.read_text()))
    wrong = [
        (where, option)
        for where, span in TEXTS
        for rest in re.findall(rf"benchmarks/{re.escape(path.name)}([^`#;|]*)", span)
        for option in re.findall(r"--([\w-]+)", rest)
        if option not in own
    ]
    assert wrong == []


def test_commands_can_be_read_by_a_shell():
    broken = []
    for where, name, rest in COMMANDS:
        try:
            shlex.split(rest.replace("<", "").replace(">", ""))
        except ValueError:
            broken.append((where, name, rest))
    assert [entry for entry in broken if entry[0].endswith(".md")] == []
