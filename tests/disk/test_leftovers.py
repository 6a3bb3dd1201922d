"""What a kill left is removed by the next run: its own, older, nobody's any more; and nothing else."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from edgequant import tracking
from edgequant.disk.leftovers import MARK, Scratch, remove_all_leftovers, remove_leftovers
from edgequant.files import atomic_path, one_at_a_time
from edgequant.folders import MARKER, atomic_folder


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process began after all that the test makes."""
    from edgequant.disk import leftovers

    monkeypatch.setattr(leftovers, "_began", lambda: time.time() + 3600)


def writing_until_killed(folder: str, ready) -> None:
    with atomic_folder(f"{folder}/checkpoint", "onnx") as temporary, Scratch(folder), atomic_path(f"{folder}/a.npy"):
        (temporary / "half").write_text("x")
        ready.set()
        time.sleep(60)


def killed(folder: Path, *, alive: bool = False) -> multiprocessing.Process:
    """A process that writes a folder, a file and has a temporary folder; killed, unless it is to stay."""
    forked = multiprocessing.get_context("fork")
    ready = forked.Event()
    process = forked.Process(target=writing_until_killed, args=(str(folder), ready))
    process.start()
    assert ready.wait(20)
    if not alive:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process


def test_the_next_run_removes_what_a_killed_one_left_and_no_foreign_file(store, tmp_path, later):
    place = tmp_path / "outputs" / "qat" / "abc"
    place.mkdir(parents=True)
    killed(place)
    foreign = [place / name for name in (".checkpoint.mine", ".checkpoint.abcdefgh", "edgequant-12345678", "notes.txt")]
    for each in foreign:
        each.mkdir() if "txt" not in each.name else each.write_text("mine")
    assert len([path for path in place.iterdir() if MARK in path.name]) == 3
    with tracking.workflow_run("qat", {}):
        assert sorted(place.iterdir()) == sorted(foreign)


def test_what_a_living_process_writes_stays(tmp_path, later):
    process = killed(tmp_path, alive=True)
    try:
        before = sorted(tmp_path.iterdir())
        assert len(before) == 3 and remove_leftovers(tmp_path) == [] and sorted(tmp_path.iterdir()) == before
    finally:
        process.kill()
        process.join()
    assert len(remove_leftovers(tmp_path)) == 3 and list(tmp_path.iterdir()) == []


def test_what_is_younger_than_the_run_stays(tmp_path):
    killed(tmp_path)
    assert remove_leftovers(tmp_path) == []  # made after this process began


def test_a_run_that_begins_at_once_after_the_kill_removes_what_it_left(tmp_path):
    killed(tmp_path)
    time.sleep(0.05)  # its beginning is known to the hundredth
    remove = "import sys; from pathlib import Path; from edgequant.disk.leftovers import remove_leftovers as remove"
    subprocess.run([sys.executable, "-c", f"{remove}; remove(Path(sys.argv[1]))", str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_files_goes_through_folders_that_the_next_run_would_remove(store, monkeypatch):
    filed, seen = mlflow.log_artifact, []
    monkeypatch.setattr(mlflow, "log_artifact", lambda path, *given: (seen.append(Path(path)), filed(path, *given)))
    with tracking.workflow_run("qat", {}):
        tracking.log_text("x", "x.txt")
        tracking.log_table([{"a": 1}], "items/a.json")
    assert {path.name for path in seen} >= {"x.txt", "a.json"}
    assert all(path.parent.name.startswith(MARK) and not path.parent.exists() for path in seen)


def test_processes_that_outlived_a_killed_search_end_with_their_folder(tmp_path, later):
    scratch = Scratch(tmp_path)
    session = Path(scratch.name, "session_2026")
    session.mkdir()
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    agent = subprocess.Popen([*sleeping, "/site-packages/ray/agent.py", f"--session-dir={session}"])
    editor = subprocess.Popen([*sleeping, f"{session}/log"])
    try:
        assert remove_leftovers(tmp_path) == [] and agent.poll() is None  # its search is at work
        os.close(scratch._lock)
        scratch._lock = None
        time.sleep(0.2)
        assert remove_leftovers(tmp_path) == [Path(scratch.name)] and agent.wait(10) == -signal.SIGKILL
        assert editor.poll() is None  # of somebody who looks at the log
    finally:
        for process in (agent, editor):
            process.kill()
            process.wait()


def test_a_result_that_a_kill_left_beside_its_place_goes_back(tmp_path):
    with atomic_folder(tmp_path / "result", "onnx") as made:
        (made / "old").write_text("whole")
    (tmp_path / "result").rename(tmp_path / "result.replaced-abcd1234")
    (tmp_path / "result.replaced-mine").mkdir()
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "result", "onnx"):
        raise RuntimeError("the next run fails")
    assert {path.name for path in tmp_path.iterdir()} == {"result", "result.replaced-mine"}
    assert {path.name for path in (tmp_path / "result").iterdir()} == {"old", MARKER}


def test_a_result_may_be_written_in_a_temporary_folder_and_where_somebody_else_holds_the_folder(tmp_path):
    with Scratch(tmp_path) as folder:
        for content in ("first", "second"):
            with atomic_folder(Path(folder, "result"), "onnx") as made:
                (made / "a").write_text(content)
        assert Path(folder, "result", "a").read_text() == "second"
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as `flock FOLDER COMMAND` does
    began = time.monotonic()
    with one_at_a_time(tmp_path, 0.2):
        assert 0.2 <= time.monotonic() - began < 5
    os.close(descriptor)


def test_links_are_not_followed(tmp_path, later):
    (tmp_path / "kept").mkdir()
    (tmp_path / f"{MARK}abcd1234").symlink_to(tmp_path / "kept")
    remove_all_leftovers(tmp_path)
    assert (tmp_path / "kept").is_dir()
