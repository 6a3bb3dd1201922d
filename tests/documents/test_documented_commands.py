"""Every command, option and setting in README, docs, recipes and messages is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from what_documents_say import ALL, DOCUMENTS, RECIPES, REFUSED_NAMES, SCRIPTS, SOURCES, prose, spans

from edgequant.__main__ import WORKFLOWS, parse, workflow
from edgequant.command_line.options import options_of
from edgequant.quantization.ptq.methods import AUTO, parse_method
from edgequant.quantization.scheme import parse_scheme
from edgequant.workflows.steps.text_mix import NAMED, parse_mix


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
    return frozenset({*options_of(workflow(name)), "help"})


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


INCOMPLETE = re.compile(r"[{<]|\bVALUE\b|\$|--help|cloze|\.\.\.$|^ [^-#]")


def complete() -> list[tuple[str, str, str]]:
    """Commands in documents, recipes and scripts' docstrings, not sentences around one; cloze is a reader's task."""
    places = {path.name for path in [*DOCUMENTS, *RECIPES, *SCRIPTS]}
    return [
        (where, name, rest)
        for where, name, rest in dict.fromkeys(COMMANDS)
        if where in places and name in WORKFLOWS and not INCOMPLETE.search(rest)
    ]


@pytest.mark.parametrize(("where", "name", "rest"), complete(), ids=lambda text: text.strip()[:60])
def test_the_parser_takes_every_command(where, name, rest):
    values = parse(name, workflow(name), arguments_of(rest))
    for text in str(values.get("scheme") or "").split(","):
        assert not text or parse_scheme(text.strip())
    if name == "ptq":
        assert values["method"] == AUTO or parse_method(values["method"])
    for part in parse_mix(str(values.get("dataset", ""))) if values.get("dataset") else []:
        assert part.name in NAMED or re.search(r"[A-Z/]", part.name), part.name


OWNERS = ("training", "qat", "ptq", "calibration", "evaluation", "lora", "settings")
MODULES = {".".join(path.with_suffix("").parts[-n:]) for path in SOURCES for n in range(1, 6)}


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


# of mlflow, vLLM, llama.cpp, torchrun and ray; and what stands for any option
FOREIGN = {
    *(
        "head",
        "resources",
        "env",
        "port",
        "timeout",
        "serve",
        "nproc_per_node",
        "backend",
        "no",
        "dtype",
        "key",
        "nested.key",
    )
}


def test_every_option_that_a_document_names_by_itself_exists():
    everywhere = {option for name in WORKFLOWS for option in known(name)}
    everywhere |= (
        {option.split(".")[0] for option in everywhere} | FOREIGN | {o for p in SCRIPTS for o in own_options(p)}
    )
    named = {
        (path.name, option)
        for path in DOCUMENTS
        if path.name not in REFUSED_NAMES
        for span in spans(path.read_text())
        for option in re.findall(r"(?<![\w-])--([a-z][\w.]*)", span)
        if not re.match(r"(python|pip|git|mkdocs|docker|\$compose|\.venv)", span)
    }
    assert sorted(entry for entry in named if entry[1].rstrip(".") not in everywhere) == []


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
