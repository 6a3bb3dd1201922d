"""`pipeline --models_at_once`: each model in a process of its own, and what becomes of one that fails or dies."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.tracking.lifetime.heartbeat import PROCESS_TAG
from edgequant.tracking.lifetime.process import parse_process
from edgequant.workflows.phases import side_by_side
from edgequant.workflows.phases.side_by_side import Share, models_at_once_of, share_of
from edgequant.workflows.pipeline import pipeline
from edgequant.workflows.settings import RunSettings


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.long
def test_models_side_by_side_are_processes_under_one_run_and_one_that_fails_costs_itself(
    store, tmp_path, tiny, tiny_folder, quick, capfd
):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    with torch.no_grad():
        tiny.model.get_input_embeddings().weight.fill_(float("nan"))
    broken = saved(tiny.model, tiny.tokenizer, tmp_path / "broken")
    settings = {
        "models": f"tiny,{broken},{other}", "models_at_once": 2, "phases": ("baseline", "report"), "output": "made",
        "evaluation": replace(quick, tasks=("domain_perplexity",)), "run": RunSettings(device="cpu"),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"1 of 3 models failed: broken: .*weights must be finite"):
        pipeline(**settings)
    (parent,) = tracking.find_runs(workflow="pipeline")
    found = tracking.find_runs(workflow="baseline")
    assert sorted(run.status for run in found) == ["FAILED", "FINISHED", "FINISHED"]
    assert {run.tags[tracking.PARENT_TAG] for run in found} == {parent.id} and parent.status == "FAILED"
    assert len({run.tags[PROCESS_TAG] for run in found} - {tracking.this_process()}) == 3
    assert (tmp_path / "made" / "report" / "report.html").is_file()
    printed = capfd.readouterr().out
    assert "other: done" in printed and "broken: failed: " in printed
    assert "perplexity (domain)" in (tmp_path / "made" / "other" / "log.txt").read_text()

    done = pipeline(**{**settings, "models": f"tiny,{other}"})
    assert [(row["model"], row["minutes"]) for row in done.rows[:2]] == [("tiny", None), ("other", None)]


@pytest.mark.long
def test_a_process_that_is_killed_costs_its_model_alone_and_the_same_command_goes_on(
    store, tmp_path, tiny_folder, quick
):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    settings = {
        "models": f"tiny,{other}", "models_at_once": 2, "phases": ("baseline",), "output": "made",
        "evaluation": replace(quick, tasks=("domain_perplexity",)),
    }  # fmt: skip
    killed = threading.Thread(target=kill_the_process_of, args=("tiny",))
    killed.start()
    with pytest.raises(UserError, match="1 of 2 models failed: tiny: its process ended"):
        pipeline(**settings, run=RunSettings(device="cpu"))
    killed.join()
    settings["models_at_once"] = 1  # as one would where memory was short
    result = pipeline(**settings, run=RunSettings(device="cpu", resume=True))
    assert [(row["model"], row["minutes"] is None) for row in result.rows] == [("tiny", False), ("other", True)]
    (parent,) = tracking.find_runs(workflow="pipeline")
    assert parent.status == "FINISHED" and parent.id == result.run_id
    assert {run.status for run in tracking.find_runs(workflow="baseline")} == {"FINISHED"}


def kill_the_process_of(model):
    """SIGKILL to the process that writes a model's run, as soon as there is one."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        for run in tracking.find_runs(workflow="baseline"):
            if model in run.name:
                pid = int(parse_process(run.tags[PROCESS_TAG]).pid)
                assert pid != os.getpid(), run.tags  # not the tests themselves
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.1)


def test_as_many_models_as_gpus_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert models_at_once_of(None, 3, "auto") == 3 and models_at_once_of(None, 9, "auto") == 4
    assert models_at_once_of(6, 9, "cuda") == 6 and models_at_once_of(None, 9, "cpu") == 1
    assert share_of(4, "cuda").gpus == 1 and share_of(8, "cuda").gpus == 0.5 and share_of(2, "cpu").gpus == 0
    assert share_of(6, "cuda").gpus == 0.5 and share_of(9, "cuda").gpus == 1 / 3
    monkeypatch.setattr(side_by_side, "physical_cores", lambda: 2)
    assert share_of(1, "cpu") == Share(2, 0) and share_of(4, "cpu") == Share(1, 0)


def test_ranks_of_torchrun_work_on_one_model_together(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert models_at_once_of(None, 3, "auto") == models_at_once_of(2, 3, "cpu") == 1


@pytest.mark.parametrize("asked", [0, -1])
def test_less_than_one_at_once_is_refused_by_name(asked):
    with pytest.raises(UserError, match=f"models_at_once must be 1 or more, or null for one per GPU, got {asked}"):
        pipeline(models="tiny,other", models_at_once=asked)


def test_one_after_the_other_needs_no_ray(store, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(side_by_side, "_ray", None)
    pipeline(model="tiny", phases=("baseline",), evaluation=quick, run=RunSettings(device="cpu"), output="made")
