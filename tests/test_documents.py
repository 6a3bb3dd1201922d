"""README, docs and messages are true: the paths, targets, commands and options that they name exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from edgequant.__main__ import WORKFLOWS, _known_keys, make_parser, parse, workflow
from edgequant.quantization.ptq.methods import parse_method
from edgequant.quantization.scheme import parse_scheme
from edgequant.workflows.steps.data import SELF_GENERATED, TEXTS
from edgequant.workflows.steps.text_mix import parse_mix

ROOT = Path(__file__).resolve().parent.parent
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


def is_placeholder(path: str) -> bool:
    """experiments/NAME.yaml stands for a file whose name the reader knows."""
    return re.fullmatch(r"[A-Z]+", Path(path).stem) is not None


def test_every_path_that_is_named_exists():
    folders = "platform|tune|registry|tests|docs|experiments|benchmarks|examples"
    named = {
        (where, path) for where, span in ALL for path in re.findall(rf"(?<![\w/.:-])(?:{folders})/[\w./-]*\w", span)
    }
    missing = [(w, path) for w, path in named if not is_placeholder(path) and not (ROOT / path).exists()]
    assert sorted(entry for entry in missing if entry[0].endswith(".md") or Path(entry[1]).suffix) == []


def test_every_file_of_ours_that_a_document_names_exists():
    """By the end of its path: `ptq/awq.py`, `tests/near_ties.py`, `qat.yaml`."""
    ends = {"/".join(path.relative_to(ROOT).parts[-n:]) for path in [*FILES, *SCRIPTS] for n in range(1, 7)}
    named = {
        (path.name, file)
        for path in DOCUMENTS
        if path.name != RENAMES
        for file in re.findall(r"`([\w/-]+\.py)`", path.read_text())
    }
    missing = {entry for entry in named if entry[1] not in ends and not is_placeholder(entry[1])}
    assert sorted(entry for entry in missing if not entry[1].startswith("my_package/")) == []


def test_every_package_that_a_document_names_exists():
    ends = {"/".join(path.relative_to(ROOT).parts[-n:]) for path in FILES if path.is_dir() for n in range(1, 7)}
    heads = (
        "arithmetic|layers|ptq|mixed_precision|evaluation|corpora|quantization|workflows|reporting|training|tracking"
    )
    named = {
        (path.name, folder)
        for path in DOCUMENTS
        for folder in re.findall(rf"`((?:{heads})/(?:[a-z_]+/)*(?:[a-z_]+/?)?)`", path.read_text())
    }
    assert sorted((where, folder) for where, folder in named if folder.rstrip("/") not in ends) == []


def test_every_link_between_documents_leads_somewhere():
    broken = []
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", path.read_text()):
            if re.match(r"\w+:", target):
                continue
            file = path.parent / target if target else path
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{path.name}: {target}#{anchor}")
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The names that GitHub and the site give to headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_documents_python_imports_exists(path):
    missing = []
    for tree in python_blocks(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgequant"):
                module = importlib.import_module(node.module)
                missing += [f"{node.module}.{a.name}" for a in node.names if not has(module, a.name)]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edgequant":
                missing += [] if has(importlib.import_module("edgequant"), node.attr) else [f"edgequant.{node.attr}"]
    assert missing == []


def has(module, name: str) -> bool:
    return hasattr(module, name) or (hasattr(module, "__path__") and find_spec(f"{module.__name__}.{name}") is not None)


@cache
def quoted() -> frozenset[str]:
    """Texts of the sources as they stand: tags, file names, groups of entry points."""
    return frozenset(literal for path in SOURCES for literal in literals(path))


def test_every_dotted_name_of_ours_is_a_module_or_in_one_or_a_tag():
    named = {
        (where, n) for where, span in ALL for n in re.findall(r"(?<![\w/.@-])edgequant\w*(?:\.\w+)+(?![\w/-])", span)
    }
    assert len(named) > 20 and sorted(entry for entry in named if not is_known_name(entry[1])) == []


def is_known_name(name: str) -> bool:
    parts = name.split(".")
    if name in quoted() or any(
        name.startswith(text) for text in quoted() if re.fullmatch(r"edgequant(\.\w+)*\.", text)
    ):
        return True
    for length in range(len(parts), 0, -1):
        module = ROOT.joinpath({"edgequant": "platform"}.get(parts[0], parts[0].partition("_")[2]), *parts[:length])
        file = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__init__.py"
        if file.is_file():
            return all(re.search(rf"\b{part}\b", file.read_text()) for part in parts[length:])
    return False


def commands() -> list[tuple[str, str, str]]:
    """(where, entry point, rest) of every edgequant command and `mlflow run . -e`."""
    found = []
    for where, span in ALL:
        for match in re.finditer(r"(?<![\w./-])edgequant ([a-z]+)((?: [^;|`]*)?)", span):
            if match[1] in WORKFLOWS or " --" in match[2]:
                found.append((where, match[1], match[2]))
        for match in re.finditer(r"mlflow run \S+ -e ([a-z]+)([^;|`]*)", span):
            found.append((where, match[1], match[2].replace("--env-manager local", "")))
    return found


COMMANDS = commands()


@cache
def known(name: str) -> frozenset[str]:
    return frozenset({*_known_keys(make_parser(name, workflow(name))), "help"})


def test_there_are_commands_to_check():
    assert len({name for _, name, _ in COMMANDS} & set(WORKFLOWS)) == len(WORKFLOWS)


def test_every_entry_point_that_is_named_exists():
    assert sorted({(where, name) for where, name, _ in COMMANDS if name not in {*WORKFLOWS, "main"}}) == []


def options_in(rest: str) -> list[str]:
    rest = rest.partition(" #")[0]
    return re.findall(r"--([a-z][\w.]*)", rest) + re.findall(r"-P ([a-z][\w.]*)=", rest)


def test_every_option_of_a_command_exists():
    wrong = {
        f"{where}: {name} --{option}"
        for where, name, rest in COMMANDS
        if name in WORKFLOWS
        for option in options_in(rest)
        if option not in known(name) | {"key", "nested.key"} and "{" not in rest
    }
    assert sorted(wrong) == []


def arguments_of(rest: str) -> list[str]:
    """The arguments of a command in a document: without a remark, what it prints, or what stands for something else."""
    words = shlex.split(re.sub(r"\s+#.*| > .*| \.\.\..*|\[-.*", "", rest).rstrip(".,:)"))
    words = [f"--{word}" if before == "-P" else word for before, word in zip(["", *words], words, strict=False)]
    return [word for word in words if word != "-P"]


def complete() -> list[tuple[str, str, str]]:
    """Commands in documents, recipes and scripts' docstrings, not sentences around one; cloze is a reader's task."""
    places = {path.name for path in [*DOCUMENTS, *RECIPES, *SCRIPTS]}
    return [
        (where, name, rest)
        for where, name, rest in dict.fromkeys(COMMANDS)
        if where in places
        and name in WORKFLOWS
        and not re.search(r"[{<]|\bVALUE\b|\$|--help|cloze|\.\.\.$|^ [^-#]", rest)
    ]


@pytest.mark.parametrize(("where", "name", "rest"), complete(), ids=lambda text: text.strip()[:60])
def test_the_parser_takes_every_command(where, name, rest):
    values = parse(name, workflow(name), arguments_of(rest))
    for text in str(values.get("scheme") or "").split(","):
        assert not text or parse_scheme(text.strip())
    if name == "ptq":
        parse_method(values["method"])
    for part in parse_mix(str(values.get("dataset", ""))) if values.get("dataset") else []:
        assert part.name in (*TEXTS, SELF_GENERATED) or re.search(r"[A-Z/]", part.name), part.name


OWNERS = ("training", "qat", "ptq", "calibration", "evaluation", "lora", "settings")
MODULES = {".".join(path.with_suffix("").parts[-n:]) for path in SOURCES for n in range(1, 6)}


def prose() -> Iterator[tuple[str, str]]:
    """As `ALL`, without Python code, in which a setting's name may be a variable's."""
    for path in DOCUMENTS:
        if path.name != RENAMES:
            yield from ((path.name, span) for span in spans(path.read_text(), ("", "toml", "yaml")))
    documents = {path.name for path in DOCUMENTS}
    yield from ((where, span) for where, span in ALL if where not in documents and where != "renamed_options.py")


def test_every_setting_that_is_named_exists():
    """`training.steps` in a document or a message is an option of some entry point, or a module."""
    everywhere = {option for name in WORKFLOWS for option in known(name)} | MODULES
    wrong = {
        (where, named)
        for where, span in prose()
        for named in re.findall(rf"(?<![\w./])(?:{'|'.join(OWNERS)})\.[a-z_]+(?![\w(.])", span)
        if named not in everywhere and not named.endswith((".py", ".yaml", ".json"))
    }
    assert sorted(wrong) == []


# of mlflow, vLLM and llama.cpp; and what stands for any option
FOREIGN = {"env", "backend", "no", "dtype", "key", "nested.key"}


def test_every_option_that_a_document_names_by_itself_exists():
    everywhere = {option for name in WORKFLOWS for option in known(name)}
    everywhere |= (
        {option.split(".")[0] for option in everywhere} | FOREIGN | {o for p in SCRIPTS for o in own_options(p)}
    )
    named = {
        (path.name, option)
        for path in DOCUMENTS
        if path.name != RENAMES
        for span in spans(path.read_text())
        for option in re.findall(r"(?<![\w-])--([a-z][\w.]*)", span)
        if not re.match(r"(python|pip|git|mkdocs|\.venv)", span)
    }
    assert sorted(entry for entry in named if entry[1].rstrip(".") not in everywhere) == []


def test_keys_in_yaml_of_the_recipes_comments_and_documents_are_known():
    """A gate's keys in docs/registry.md, a space's in docs/tune.md: what documents show is read by the code."""
    from edgequant.quantization.qat.settings import QatSettings
    from edgequant.training.settings import TrainingSettings
    from edgequant_registry.policy import read_policy
    from edgequant_tune.search_space import read_space

    (policy,) = yaml_blocks(ROOT / "docs" / "registry.md")
    (space,) = yaml_blocks(ROOT / "docs" / "tune.md")
    assert {"name", "gates"} == set(policy) and read_space(space, (TrainingSettings, QatSettings), with_scheme=True)
    assert read_policy("default").gates


def yaml_blocks(path: Path) -> list[dict]:
    return [yaml.safe_load(block) for language, block in FENCED.findall(path.read_text()) if language == "yaml"]


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (where, target)
        for where, span in ALL
        if where.endswith(".md") or span.startswith("make ")
        for target in re.findall(r"(?:^|[`(&;] ?)make ([a-z][a-z-]+)\b", span)
    }
    assert sorted(pair for pair in named if pair[1] not in targets) == []


def own_options(path: Path) -> set[str]:
    return set(re.findall(r'add_argument\(\s*"--([\w-]+)"', path.read_text()))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_option_of_a_scripts_command_exists(path):
    wrong = [
        (where, option)
        for where, span in ALL
        for rest in re.findall(rf"{path.parent.name}/{re.escape(path.name)}([^`#;|]*)", span)
        for option in re.findall(r"--([\w-]+)", rest)
        if option not in own_options(path)
    ]
    assert wrong == []
