"""benchmarks/fault_campaign.py: one fault of each kind loses nothing, and what is lost is noticed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from faults import disks, interruptions, outcome, places, records, tampering  # noqa: E402
from faults.campaign import SHORT, shared  # noqa: E402
from faults.entry_points import ENTRY_POINTS  # noqa: E402
from faults.forking import Ended  # noqa: E402
from faults.places import Place, Run  # noqa: E402

MOUNTS = ["unshare", "--map-root-user", "--mount", "true"]
MAY_MOUNT = subprocess.run(MOUNTS, stderr=subprocess.DEVNULL, check=False).returncode == 0
EVALUATE, EXPORT = ENTRY_POINTS["evaluate"], ENTRY_POINTS["export"]


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What a short campaign recorded."""
    folder = tmp_path_factory.mktemp("campaign")
    command = [sys.executable, str(ROOT / "benchmarks" / "fault_campaign.py"), "--keep", str(folder), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stderr
    assert ("full disks left out" in done.stdout) == (not MAY_MOUNT)
    return [json.loads(line) for line in (folder / "tries-0.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_one_fault_of_each_kind_loses_nothing(tries):
    assert [one["kind"] for one in tries] == [kind for kind in SHORT if kind != "disks" or MAY_MOUNT]
    assert [line for one in tries for line in one["lost"]] == []


@pytest.mark.long
def test_nor_does_it_leave_anything_lying_about(tries):
    assert [line for one in tries for line in one["litter"]] == []


def test_all_entry_points_of_the_project_are_tried():
    project = (ROOT / "MLproject").read_text()
    assert {*ENTRY_POINTS} == {name for name in ENTRY_POINTS if f"\n  {name}:" in project} and len(ENTRY_POINTS) == 11
    counts = shared(330, {name: entry.kills for name, entry in ENTRY_POINTS.items()})
    assert sum(counts.values()) >= 300 and min(counts.values()) >= 1


# ------------------------------------------------------------------------------------------------- losses are noticed


def run(
    identifier: str, status: str = "FINISHED", workflow: str = "evaluate", parent: str = "", variant: str = ""
) -> Run:
    return Run(identifier, status, workflow, parent, (variant, "", ""), {})


def test_a_run_that_nobody_ends_or_that_was_begun_twice_is_lost():
    twice = [
        run("a"),
        run("b", workflow="", parent="a", variant="ptq"),
        run("c", workflow="", parent="a", variant="ptq"),
    ]
    assert outcome.runs_lost(EVALUATE, [run("a")], []) == []
    assert outcome.runs_lost(EVALUATE, [run("a", "RUNNING")], []) == ["a run is still RUNNING: evaluate"]
    assert outcome.runs_lost(EVALUATE, twice, []) == ["nested run ptq is there 2 times"]
    begun_anew = [run("a", "KILLED"), run("b")]
    assert outcome.runs_lost(EVALUATE, begun_anew, [run("a", "RUNNING")]) == [
        "the interrupted run was not gone on with"
    ]
    assert outcome.runs_lost(EXPORT, begun_anew, [run("a", "RUNNING")]) == []  # has no --resume


def test_a_users_file_that_is_gone_or_changed_is_noticed(tmp_path):
    place = Place(tmp_path / "place").laid_out()
    before = places.leave_files(place)
    assert places.touched(place, before) == []
    (place.work / "thesis.tex").write_text("another")
    (place.work / "checkpoint-3" / "x.bin").unlink()
    assert places.touched(place, before) == ["thesis.tex", "checkpoint-3/x.bin"]


def test_a_difference_of_one_byte_and_a_new_file_are_seen(tmp_path):
    place = Place(tmp_path / "place").laid_out()
    with sqlite3.connect(place.database) as store:
        store.execute("CREATE TABLE registered_model_aliases (name, alias, version)")
        store.execute("CREATE TABLE model_versions (name)")
    (place.work / "made").write_bytes(b"12345678")
    before = places.left_by(place, [])
    (place.work / "made").write_bytes(b"12345679")
    (place.root / "tmp" / "edgequant-1").mkdir()
    after = places.left_by(place, [])
    assert before["work/made"] != after["work/made"] and {*after} - {*before} == {"tmp/edgequant-1"}


@pytest.mark.parametrize("status, said, lost", [
    (2, "edgequant evaluate: checkpoint x: a.json is damaged", []),
    (2, "edgequant evaluate: something is wrong", ["refused without its name"]),
    (0, "all is well", ["not noticed"]),
    (1, "Traceback (most recent call last):\na.json", ["a traceback"]),
])  # fmt: skip
def test_a_tampered_file_must_be_refused_by_name(status, said, lost):
    target = tampering.TARGETS["checkpoint"]
    found = tampering.noticed(Ended(status, 1.0, said), Path("x/a.json"), "flipped", target, [], [])
    assert len(found) == len(lost) and all(part in line for part, line in zip(lost, found, strict=True))


def test_a_flipped_byte_is_one_bit(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes(100))
    tampering.tamper(file, "flipped", Random(0))
    assert sum(byte.bit_count() for byte in file.read_bytes()) == 1
    tampering.tamper(file, "added", Random(0))
    tampering.tamper(file, "cut", Random(0))
    assert len(file.read_bytes()) < 100 and len([*tmp_path.iterdir()]) == 2


def test_a_full_disk_must_be_told_with_path_and_free_bytes():
    assert disks.told_of(Ended(2, 1.0, "edgequant ptq: disk of /data/out is full: 4,096 bytes are free")) == []
    assert disks.told_of(Ended(2, 1.0, "edgequant ptq: [Errno 28] No space left on device"))
    assert disks.told_of(Ended(2, 1.0, "Traceback\n/data/out 4 bytes"))


def test_a_signal_must_end_in_a_line_that_says_how_to_go_on():
    assert interruptions.tells_how_to_go_on("...\nedgequant qat: interrupted; go on with --resume true", EVALUATE)
    assert not interruptions.tells_how_to_go_on("edgequant qat: interrupted", EVALUATE)
    assert interruptions.tells_how_to_go_on("edgequant export: interrupted; give the same command again", EXPORT)


def test_the_document_has_the_counts_of_the_last_campaign():
    assert records.section() in records.DOCUMENT.read_text(), (
        "run: python benchmarks/fault_campaign.py --keep X --count"
    )
    assert os.path.isfile(records.COUNTS)
