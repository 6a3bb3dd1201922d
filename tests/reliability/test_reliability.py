"""Odd inputs: none is silently wrong, none ends in a traceback; docs/reliability.md is the list of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from situation import HAPPENS, Place, Situation
from table import KINDS, table

ALL = {f"{kind}: {one.given}": one for kind, situations in KINDS.items() for one in situations}


@pytest.mark.parametrize("name", ALL)
def test_an_odd_input_is_read_as_meant_or_refused_in_one_line(
    name: str, tmp_path: Path, store: Any, tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    situation, place = ALL[name], Place(tmp_path, tiny_folder, lambda: request.getfixturevalue("data_dir"))
    said = situation.run(place)
    assert place.status == (2 if situation.happens in ("refused", "ended") else 0), said
    assert "Traceback" not in said
    assert any(re.search(pattern_of(situation.line), line) for line in said.splitlines()), said
    if situation.happens == "refused":
        assert len(said.strip().splitlines()) == 1, f"more than one line: {said}"
        assert not runs_of(store)
    if situation.happens == "ended":
        assert "edgequant" in said.strip().splitlines()[-1], "the error is the last line"
        assert {run.info.status for run in runs_of(store)} == {"FAILED"} and not store.search_registered_models()


def runs_of(store: Any) -> list[Any]:
    return list(store.search_runs([one.experiment_id for one in store.search_experiments()]))


def pattern_of(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split("..."))


def test_every_situation_says_what_happens_and_is_named_once() -> None:
    situations = [one for listed in KINDS.values() for one in listed]
    assert {one.happens for one in situations} <= set(HAPPENS)
    assert len({(one.given, one.command) for one in situations}) == len(situations)
    assert len(situations) == len(ALL)


def test_the_document_lists_them_all(root: Path) -> None:
    """Made anew by `python tests/reliability/table.py`."""
    assert table() in (root / "docs" / "reliability.md").read_text(), "run: python tests/reliability/table.py"


def test_a_situation_that_prints_something_else_fails() -> None:
    assert not re.search(pattern_of("model ... not found"), "model 'x' is unknown")
    assert Situation("a", "b", "told", "c", lambda place: "").happens in HAPPENS
