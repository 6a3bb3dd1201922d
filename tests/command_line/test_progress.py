"""Long work shows that it moves where nobody watches a bar: a line a minute on stdout."""

from __future__ import annotations

import gc
import io
import sys
import time

import pytest

from edgequant import progress as module
from edgequant.progress import Progress, clock, heartbeat, progress


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of a second for a minute."""
    monkeypatch.setattr(module, "LINE_SECONDS", 0.05)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_without_a_terminal_a_line_tells_what_is_done_the_rate_the_time_left_and_the_loss(often, capsys):
    with Progress(400, "qat tiny", "step") as shown:
        shown.update(100)
        shown.say("loss 2.310")
        time.sleep(0.18)
    told = lines(capsys)
    assert 2 <= len(told) <= 4
    assert told[-1].startswith("qat tiny: step 100 of 400, ") and told[-1].endswith(" left, loss 2.310")
    assert "steps/s" in told[-1]
    time.sleep(0.1)
    assert lines(capsys) == []  # it has ended


def test_short_work_prints_nothing(capsys):
    assert list(progress(range(5), 5, "perplexity")) == [0, 1, 2, 3, 4]
    assert lines(capsys) == []


def test_on_a_terminal_no_line_is_printed(often, capsys, monkeypatch):
    monkeypatch.setattr(module, "_is_terminal", lambda: True)
    with Progress(4, "qat", "step"):
        time.sleep(0.15)
    assert lines(capsys) == []


def test_one_of_several_processes_prints(often, capsys):
    with Progress(4, "qat", "step", quiet=True) as shown:
        shown.update()
        time.sleep(0.15)
    assert lines(capsys) == [] and shown.done == 1


def test_work_that_an_error_ended_is_not_told_of_any_more(often, capsys):
    def fails() -> None:
        shown = Progress(4, "gptq", "block")
        shown.update()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    gc.collect()
    time.sleep(0.1)
    lines(capsys)
    time.sleep(0.15)
    assert lines(capsys) == []


def test_work_that_counts_nothing_still_says_that_it_goes_on(often, capsys):
    with heartbeat("qat tiny w8"):
        time.sleep(0.2)
    told = lines(capsys)
    assert told and all(line.startswith("qat tiny w8: 0:0") and line.endswith(" so far") for line in told)
    time.sleep(0.1)
    assert lines(capsys) == []


def test_a_heartbeat_is_silent_while_other_lines_come(often, capsys):
    def told_less() -> bool:
        with heartbeat("qat"), Progress(9, "train", "step"):
            time.sleep(0.3)
        told = lines(capsys)
        return sum(line.startswith("train") for line in told) > sum(line.startswith("qat") for line in told)

    assert any(told_less() for _ in range(5))  # where others keep the cores busy, threads wake up late


def test_a_training_of_a_minute_prints_lines_with_its_loss(often, capsys, monkeypatch, tmp_path):
    import torch

    from edgequant import models
    from edgequant.training.loop import train
    from edgequant.training.settings import TrainingSettings

    tokens = torch.randint(0, 200, (8, 16))
    settings = TrainingSettings(steps=20, batch_size=2, sequence_length=16, learning_rate=1e-3)
    train(models.load("tiny", dtype="float32", device="cpu").model, tokens, settings, tmp_path, title="qat tiny")
    told = [line for line in lines(capsys) if line.startswith("qat tiny: step ")]
    assert told and "of 20" in told[-1] and "loss" in told[-1] and "left" in told[-1]


def test_a_stream_that_is_no_terminal_or_closed_is_no_error(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert not module._is_terminal()


@pytest.mark.parametrize(("seconds", "told"), [(0, "0:00"), (65.4, "1:05"), (3600, "1:00:00"), (7384, "2:03:04")])
def test_times_are_told_as_on_a_clock(seconds, told):
    assert clock(seconds) == told
