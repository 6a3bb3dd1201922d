"""CHANGELOG.md lists everything that has another name now, and its versions are the project's."""

from __future__ import annotations

import re
from pathlib import Path

import edgequant
from edgequant.__main__ import WORKFLOWS
from edgequant.command_line.renamed_options import RENAMED
from edgequant.quantization.ptq import methods
from edgequant.workflows.steps.data import SELF_GENERATED

TEXT = (Path(__file__).resolve().parent.parent.parent / "CHANGELOG.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of the rows below a heading's table head, without the code marks."""
    section = TEXT.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in row] for row in rows[2:]]


def test_every_renamed_option_is_listed_with_its_entry_points_and_nothing_else_is():
    listed = {
        (name, old, new)
        for old, new, names in table("Renamed options and keys of recipes")
        for name in names.split(", ")
    }
    assert listed == {(name, old, new) for name, pairs in RENAMED.items() for old, new in pairs.items()}
    assert {name for name, _, _ in listed} <= set(WORKFLOWS)


def test_every_renamed_value_is_listed():
    listed = {(old, new) for _, old, new in table("Renamed values")}
    assert set(methods.RENAMED.items()) < listed
    assert ("generated", SELF_GENERATED) in listed and ("ema", "moving_average_minmax") in listed


def test_the_newest_version_with_a_heading_is_the_packages():
    headings = re.findall(r"^## (\S+)", TEXT, re.M)
    assert headings[0] == "Unreleased" and headings[1] == edgequant.__version__


def test_modules_that_are_named_as_new_exist():
    from importlib.util import find_spec

    named = {name for _, new in table("Moved modules") for name in re.findall(r"edgequant\w*(?:\.\w+)+", new)}
    assert len(named) > 8 and [name for name in sorted(named) if find_spec(name) is None] == []
