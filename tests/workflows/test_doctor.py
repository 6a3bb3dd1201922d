"""`edgequant doctor` names what is missing with its fix, and fails only when something necessary is."""

from __future__ import annotations

import errno
import io
import os
import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgequant import tracking
from edgequant.workflows import doctor as module
from edgequant.workflows.checks import installation, machine, reachable
from edgequant.workflows.checks.finding import Finding
from edgequant.workflows.doctor import doctor


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.delenv("EDGEQUANT_DATA", raising=False)


def test_a_missing_package_is_named_with_its_command_and_the_exit_code_is_1(monkeypatch, capsys) -> None:
    absent = installation._package(Requirement("no-such-package>=2"))
    monkeypatch.setattr(module, "checks", lambda *_: [lambda: [absent]])
    with pytest.raises(SystemExit) as stopped:
        doctor(offline=True)
    output = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 1
    assert "no-such-package" in output and "pip install 'no-such-package>=2'" in output


def test_a_package_that_is_too_old_is_missing_and_says_both_versions() -> None:
    found = installation._package(Requirement("numpy>=999"))
    assert found.state == "missing" and ">=999" in found.found


def test_notes_alone_do_not_fail(monkeypatch, capsys) -> None:
    monkeypatch.setattr(module, "checks", lambda *_: [lambda: [Finding("GPU", "note", "none")]])
    doctor(offline=True)
    assert "Everything necessary is here" in capsys.readouterr().out


def test_a_check_that_breaks_is_a_line_and_the_others_go_on(monkeypatch, capsys) -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("no driver")

    monkeypatch.setattr(module, "checks", lambda *_: [broken, lambda: [Finding("disk", "ok", "9 GB")]])
    doctor(offline=True)
    output = capsys.readouterr().out
    assert "no driver" in output and "disk" in output


def test_a_tracking_server_that_does_not_answer_is_missing(monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        finding = reachable.tracking_store()[0]
    assert finding.state == "missing" and "MLFLOW_TRACKING_URI" in finding.fix


def test_a_store_that_is_not_there_yet_is_fine_and_is_not_made(tmp_path) -> None:
    assert reachable.tracking_store()[0].state == "ok"
    assert not (tmp_path / "store.db").exists()


def test_a_setting_that_every_run_refuses_is_missing(monkeypatch) -> None:
    monkeypatch.setenv("EDGEQUANT_TRACKING_PATIENCE", "long")
    (finding,) = reachable.tracking_store()
    assert (finding.state, finding.fix) == ("missing", "leave it out for 420")
    assert finding.found == "EDGEQUANT_TRACKING_PATIENCE must be a number of seconds, 0 or more, got 'long'"


@pytest.mark.parametrize("cache", ["file", "file/below", "/proc/nowhere"])
def test_a_cache_that_no_run_could_write_to_is_missing(monkeypatch, tmp_path, cache) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path / cache))
    found = {finding.what: finding for finding in machine.disk_and_memory()}
    assert (found["disk"].state, found["cache"].state) == ("ok", "missing")
    assert "cannot be written to" in found["cache"].found and "EDGEQUANT_CACHE" in found["cache"].fix


def test_a_full_disk_is_missing_and_nothing_is_left_behind(monkeypatch, tmp_path) -> None:
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path / "not" / "there"))
    assert {finding.state for finding in machine.disk_and_memory()} <= {"ok", "note"}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(machine.tempfile, "TemporaryFile", lambda dir: Full())
    found = machine.disk_and_memory()[0]
    assert found.state == "missing" and "No space left on device" in found.found


def test_benchmark_files_are_looked_for_one_by_one(tmp_path) -> None:
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "dev.jsonl").write_text("{}")
    states = {finding.what: finding.state for finding in reachable.benchmark_files(str(tmp_path))}
    assert states == {
        "data folder": "ok",
        "wikitext2 test": "note",
        "boolq validation": "ok",
        "squad validation": "note",
    }


def test_without_a_data_folder_the_fix_names_the_variable() -> None:
    assert "EDGEQUANT_DATA" in reachable.benchmark_files(None)[0].fix


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"])
@pytest.mark.parametrize(
    ("place", "said"),
    [("file", "is not a folder"), ("file/below", "lies below a file"), ("nowhere/below", "does not exist"),
     ("empty", "is empty"), ("closed", "cannot be read (Permission denied)")],
)  # fmt: skip
def test_a_cache_of_the_hub_that_is_of_no_use_is_told_offline_too(monkeypatch, tmp_path, variable, place, said) -> None:
    def listed(folder, listdir=os.listdir):
        if Path(folder).name == "closed":  # root may read everything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listdir(folder)

    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(reachable.os, "listdir", listed)
    monkeypatch.setenv(variable, str(tmp_path / place))
    told = reachable.hub(offline=True)[-1]
    assert (told.what, told.state) == ("model hub's cache", "note") and variable in told.fix
    assert told.found == f"{variable} {tmp_path / place} {said}: models and data sets by name cannot be had"


def test_a_cache_of_the_hub_that_is_one_or_will_be_made_is_not_told(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tracking, "answers", lambda *_: True)
    monkeypatch.delenv("HF_HUB_OFFLINE")  # of all tests
    (tmp_path / "models--a--b").mkdir()
    for offline, place in ((True, tmp_path), (True, ""), (False, tmp_path / "not" / "yet")):
        monkeypatch.setenv("HF_HOME", str(place))
        assert [finding.what for finding in reachable.hub(offline)] == ["model hub"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    assert reachable.hub(offline=False)[-1].found.endswith(
        "file is not a folder: models and data sets by name cannot be had"
    )


def test_the_real_checks_all_answer(monkeypatch) -> None:
    findings = [finding for check in module.checks(None, True) for finding in check()]
    assert {"Python", "packages", "CPU", "tracking store", "disk", "memory", "model hub"} <= {f.what for f in findings}
    assert all(finding.fix for finding in findings if finding.state == "missing")
