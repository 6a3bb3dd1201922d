"""Where other work wants the cores, threads sleep while they wait for each other; elsewhere they spin briefly first."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from edgequant.machine import other_work

HOW = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture
def two_cores(monkeypatch):
    """A machine of two cores, by a /proc/stat of its own, and nothing in the environment."""
    for name in (*HOW, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(other_work, "physical_cores", lambda: 2)

    def idle(cores: float | None) -> None:
        monkeypatch.setattr(other_work, "idle_cores", lambda: cores)

    return idle


@pytest.mark.parametrize(("cores", "sleeps"), [(2.0, False), (1.7, False), (1.4, True), (0.0, True), (None, False)])
def test_threads_sleep_where_less_is_idle_than_they_are(two_cores, capsys, cores, sleeps):
    two_cores(cores)
    other_work.wait_as_other_work_allows()
    assert os.environ["GOMP_SPINCOUNT"] == ("100" if sleeps else "10000")
    told = capsys.readouterr().err
    assert told.count("\n") == sleeps and (f"other work leaves {cores} of 2 cores" in told) is sleeps


@pytest.mark.parametrize("cores", [2.0, 0.0])
@pytest.mark.parametrize("name", HOW)
def test_who_has_said_how_threads_wait_keeps_it(two_cores, monkeypatch, capsys, name, cores):
    two_cores(cores)
    monkeypatch.setenv(name, "active" if name == "OMP_WAIT_POLICY" else "1000")
    other_work.wait_as_other_work_allows()
    assert [each for each in HOW if each in os.environ] == [name] and not capsys.readouterr().err


def test_one_thread_waits_for_nobody(two_cores, monkeypatch):
    two_cores(0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    other_work.wait_as_other_work_allows()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_process_started_by_one_of_ours_looks_for_itself(two_cores, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    for cores, spins in ((2.0, "10000"), (0.0, "100"), (2.0, "10000")):
        two_cores(cores)
        other_work.wait_as_other_work_allows()
        assert os.environ["GOMP_SPINCOUNT"] == spins


def test_idle_cores_are_those_that_this_process_may_use(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    monkeypatch.setattr(other_work, "_STAT", stat)
    monkeypatch.setattr(other_work.os, "sched_getaffinity", lambda _: {1, 2})

    def write(*ticks: int) -> None:
        lines = [f"cpu{cpu} 7 0 5 {idle} 3 0 0 0 0 0" for cpu, idle in enumerate(ticks)]
        stat.write_text("\n".join(["cpu 1 1 1 1 1 1 1 1 1 1", *lines, "intr 5", ""]))

    def second(_seconds: float) -> None:
        write(90_000, 1_010, 2_004)

    write(0, 1_000, 2_000)
    monkeypatch.setattr(other_work.time, "sleep", second)
    times = iter((5.0, 5.1) * 3)
    monkeypatch.setattr(other_work.time, "monotonic", lambda: next(times))
    assert other_work.idle_cores() == pytest.approx(14 / (0.1 * os.sysconf("SC_CLK_TCK")))
    stat.write_text("cpu1\n")  # of another system
    assert other_work.idle_cores() is None
    stat.unlink()
    assert other_work.idle_cores() is None


@pytest.mark.skipif(not other_work._STAT.exists(), reason="no /proc")
def test_a_process_that_computes_is_seen():
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(0.5)
        assert min(other_work.idle_cores() for _ in range(3)) < cores - other_work.NOTHING
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("command", "looks"), [("qat", True), ("pipeline", True), ("promote", False), ("--help", False)]
)
def test_a_command_that_computes_looks_before_torch_is_loaded(monkeypatch, command, looks):
    from edgequant.command_line import shell

    begun = []

    def work(*_):
        raise SystemExit

    monkeypatch.setattr(shell, "wait_as_other_work_allows", lambda: begun.append(True))
    monkeypatch.setattr(shell, "_status", work)
    monkeypatch.setattr(sys, "argv", ["edgequant", command])
    with pytest.raises(SystemExit):
        shell.run()
    assert begun == [True] * looks
