"""README, docs, recipes and messages are true: the paths, links, modules and targets that they name exist."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from what_documents_say import ALL, DOCUMENTS, FENCED, FILES, RENAMES, ROOT, SCRIPTS, SOURCES, literals, python_blocks

from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import TrainingSettings
from edgequant_registry.policy import read_policy
from edgequant_tune.search_space import read_space


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
    """By the end of its path: `ptq/scaling/awq.py`, `tests/near_ties.py`, `qat.yaml`."""
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


def test_a_documents_policy_and_search_space_are_read_by_the_code(tmp_path):
    (policy,) = yaml_blocks(ROOT / "docs" / "registry.md")
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    assert len(read_policy(str(tmp_path / "policy.yaml")).gates) == len(policy["gates"])
    (space,) = yaml_blocks(ROOT / "docs" / "tune.md")
    assert read_space(space, (TrainingSettings, QatSettings))


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
