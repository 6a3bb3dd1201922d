"""`evidence.json` is read whole and of the right kinds, or refused in one line that says what is wrong."""

from __future__ import annotations

import json

import pytest

from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import Conditions, Evidence, Scores, read

ITEMS = {"domain": [{"id": "a", "nats": 3.0, "tokens": 2}], "boolq": [{"id": "b", "correct": True, "gold": True}]}
SCORES = Scores({"domain/perplexity": 4.5, "boolq/accuracy": float("nan")}, ITEMS)


def filed() -> dict:
    conditions = Conditions(tasks=("boolq",), protocol={"limit": 3}, data={"boolq": "0a"})
    names = {"model": "tiny", "scheme": "w8", "variant": "ptq", "run": "r"}
    made = Evidence(
        **names, files={"config.json": "0b"}, settings={}, measured=SCORES, baseline=SCORES, conditions=conditions
    )
    return json.loads(made.to_json())


def test_what_was_filed_is_read_again():
    found = read(json.dumps(filed()), "x")
    assert found.measured.items == ITEMS and found.conditions.tasks == ("boolq",) and found.asked is None


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("files",), ["config.json"], "files is ['config.json']"),
        (("files",), None, "files is None"),
        (("settings",), "x", "settings is 'x'"),
        (("asked",), [1], "asked is [1]"),
        (("conditions", "protocol"), None, "protocol is None"),
        (("conditions", "data"), 3, "data is 3"),
        (("conditions", "kept"), [1], "kept is [1]"),
        (("conditions", "tasks"), "boolq", "tasks is 'boolq'"),
        (("items", "measured", "domain", "columns", "nats"), ["x"], "nats of an item of domain is 'x'"),
        (("items", "baseline", "boolq", "columns", "correct"), [None], "correct of an item of boolq is None"),
    ],
)
def test_what_is_of_another_kind_is_refused_before_anything_is_judged_by_it(place, value, told):
    found = filed()
    inner = found
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(UserError) as refused:
        read(json.dumps(found), "version 1: evidence.json")
    assert str(refused.value).startswith("version 1: evidence.json is not evidence of edgequant")
    assert told in str(refused.value).replace('"', "'").replace("\\'", "'")


def test_a_newer_format_asks_for_a_newer_edgequant_and_for_nothing_else():
    with pytest.raises(UserError) as refused:
        read(json.dumps(filed() | {"format": 2}), "evidence.json")
    assert str(refused.value) == "evidence.json must have format 1, got 2; install a newer edgequant"
