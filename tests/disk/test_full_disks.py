"""A disk that is full is told in one line: the path and the free bytes, whatever library met it."""

from __future__ import annotations

import errno
import re

import pytest
from small_disk import run_on_small_disk

from edgequant.__main__ import main
from edgequant.command_line.library_errors import told
from edgequant.disk import faults as disks
from edgequant.disk.faults import DiskError, check_room, fault, told_of, writing
from edgequant.folders import atomic_folder

EACH = """
import errno, json, pathlib, sqlite3
from unittest import mock
import numpy, safetensors.numpy, shutil, torch
from edgequant.disk.faults import DiskError, writing
from edgequant.files import write_atomically
from edgequant.folders import atomic_folder

BIG = numpy.zeros(300_000, numpy.float32)
pathlib.Path("old").write_text("whole")
pathlib.Path("/tmp/edgequant-big").write_bytes(bytes(1_200_000))

def database(path):
    with sqlite3.connect(path) as opened:
        opened.execute("CREATE TABLE t (x)")
        opened.execute("INSERT INTO t VALUES (zeroblob(1200000))")

def folder(path):
    with atomic_folder(path, "onnx") as made:
        (made / "weights").write_bytes(bytes(1_200_000))

WRITERS = {
    "text": lambda path: write_atomically(path, "x" * 1_200_000),
    "folder": folder,
    "torch": lambda path: torch.save(torch.from_numpy(BIG), path),
    "safetensors": lambda path: safetensors.numpy.save_file({"w": BIG}, path),
    "numpy": lambda path: BIG.tofile(path),
    "sqlite": database,
    "copy": lambda path: shutil.copy("/tmp/edgequant-big", path),
}
for name, write in WRITERS.items():
    target = pathlib.Path(name).resolve()
    try:
        with writing(target):
            write(target)
        print("NOTHING", name)
    except DiskError as error:
        print(name, str(error))
    except BaseException as error:
        print("OTHER", name, type(error), error)
    target.unlink(missing_ok=True) if not target.is_dir() else None
try:
    write_atomically("old", "x" * 1_200_000)
except DiskError:
    pass
print(pathlib.Path("old").read_text(), sorted(path.name for path in pathlib.Path().iterdir()))
pathlib.Path("/tmp/edgequant-big").unlink()
"""


def test_whoever_writes_to_a_full_disk_the_line_names_path_and_free_bytes_and_what_was_whole_stays(
    tmp_path, environment
):
    said = run_on_small_disk(tmp_path, 800, EACH, environment).splitlines()
    names = ["text", "folder", "torch", "safetensors", "numpy", "sqlite", "copy"]
    for name, line in zip(names, said, strict=False):
        where = re.escape(str(tmp_path / name))
        told = rf"{name} '{where}' could not be written: the disk is full \([\d,]+ bytes free\); free some space, .*"
        assert re.fullmatch(told, line), line
    assert said[-1] == "whole ['old']"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS),
        (OSError(errno.EIO, "Input/output error"), errno.EIO),
        (OSError(errno.EFBIG, "File too large"), errno.EFBIG),
        (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0"), errno.ENOSPC),
        (OSError("40960 requested and 24448 written"), errno.ENOSPC),
        (OSError(errno.ENOENT, "No such file or directory"), None),
        (RuntimeError("size mismatch for weight"), None),
        (ValueError("No space left on device"), None),  # text of a user's, say
    ],
)
def test_faults_of_disks_are_told_from_other_errors(error, number):
    assert fault(error) == number
    raised = RuntimeError("while saving")
    raised.__cause__ = error
    assert fault(raised) == number


def test_an_error_that_names_no_path_is_told_with_the_place_that_has_least_room(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "free_bytes", lambda path: 4096 if path == tmp_path / "mlflow.db" else 10**9)
    found = told_of(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "mlflow.db")
    assert str(found).startswith(f"'{tmp_path}/mlflow.db' could not be written: the disk is full (4,096 bytes free)")


def test_a_copy_is_told_by_where_it_was_to_go():
    error = OSError(errno.ENOSPC, "No space left on device", "/from/a", None, "/to/b")
    assert told(error).startswith("'/to/b' could not be written: the disk is full")


def test_what_plainly_does_not_fit_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "free_bytes", lambda _: 4096)
    with pytest.raises(DiskError, match=r"has no room for a model: about 5,000 bytes are needed, 4,096 are free; free"):
        check_room(tmp_path, 5000, "a model")
    check_room(tmp_path, 4096, "a model")


def test_a_full_disk_ends_a_run_as_failed_with_one_line_and_the_way_on(store, monkeypatch, capsys):
    from edgequant import tracking

    def working(**_: object) -> None:
        with tracking.workflow_run("qat", {"model": "tiny"}), atomic_folder("made", "onnx"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgequant.__main__.workflow", lambda _: working)
    monkeypatch.setattr("edgequant.__main__.options_of", lambda _: {"resume": bool})
    monkeypatch.setattr("edgequant.__main__.parse", lambda *_: {})
    assert main(["qat"]) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "INFO" not in each]
    assert "made' could not be written: the disk is full" in line and line.endswith("goes on with the run")
    (run,) = store.search_runs(["1"])
    assert run.info.status == "FAILED"


def test_an_artifact_that_finds_no_room_is_told_by_its_place(store, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as shutil.copyfileobj does, without a name

    from edgequant import tracking

    with pytest.raises(DiskError, match=rf"'.*{tmp_path.name}/mlruns/1/.*/artifacts/plots' could not be written"):  # noqa: SIM117
        with tracking.workflow_run("report", {}), monkeypatch.context() as patch:
            patch.setattr("mlflow.log_artifact", full)
            tracking.log_artifact("a.html", "plots")


def test_nothing_is_wrapped_that_is_no_disks_fault(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("x")
