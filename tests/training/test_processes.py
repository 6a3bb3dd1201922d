"""Several GPUs: a lone process uses one and says so; several processes share a step and train what one would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed_training import SETTINGS, trained
from transformers import TrainingArguments

from edgequant.errors import UserError
from edgequant.models.devices import pick_device
from edgequant.training.processes import from_main_process, launched_processes, on_its_devices, pass_of_each_process
from edgequant.training.settings import TrainingSettings

HERE = Path(__file__).resolve().parent


def arguments_on(folder, monkeypatch, gpus: int) -> TrainingArguments:
    """As transformers makes them on a machine with so many GPUs, where a lone process would take all."""
    made = TrainingArguments(output_dir=str(folder), per_device_train_batch_size=4, use_cpu=True, report_to=[])
    made._n_gpu = gpus
    made.__dict__["_setup_devices"] = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return made


def test_a_lone_process_takes_one_of_several_gpus_and_says_so(tmp_path, monkeypatch, capsys):
    made = arguments_on(tmp_path, monkeypatch, 4)
    assert made.train_batch_size == 16  # what Trainer would have made of a batch of 4
    made = on_its_devices(made, torch.device("cuda"))
    assert (made.n_gpu, made.train_batch_size) == (1, 4)
    assert capsys.readouterr().out == (
        "training: one of 4 GPUs; all of them: torchrun --nproc_per_node 4 -m edgequant ...\n"
    )


def test_one_gpu_is_nothing_to_speak_of(tmp_path, monkeypatch, capsys):
    assert on_its_devices(arguments_on(tmp_path, monkeypatch, 1), torch.device("cuda:0")).n_gpu == 1
    assert capsys.readouterr().out == ""


def test_training_stays_on_the_gpu_where_the_model_lies(tmp_path, monkeypatch):
    made = on_its_devices(arguments_on(tmp_path, monkeypatch, 4), torch.device("cuda:2"))
    assert (made.device, made.n_gpu) == (torch.device("cuda:2"), 1)


@pytest.mark.parametrize(
    ("batch", "passes", "processes", "expected"),
    [(8, 1, 1, (8, 1)), (8, 3, 4, (2, 3)), (6, 4, 4, (6, 1)), (1, 8, 2, (1, 4))],
)
def test_processes_together_do_the_work_of_one_step(batch, passes, processes, expected):
    settings = TrainingSettings(batch_size=batch, gradient_accumulation=passes)
    shared = pass_of_each_process(settings, processes)
    assert shared == expected
    assert shared[0] * shared[1] * processes == batch * passes


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(UserError, match=r"batch_size 6 must be a multiple of the 4 processes .* use batch_size 8"):
        pass_of_each_process(TrainingSettings(batch_size=6), 4)


def test_each_launched_process_loads_on_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (pick_device("auto"), pick_device("cuda"), pick_device("cuda:0")) == ("cuda:1", "cuda:1", "cuda:0")


def test_without_a_launcher_there_is_one_process_which_answers_itself(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a batch system, not of a launcher
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert launched_processes() == 1
    assert from_main_process(lambda: 3) == 3


@pytest.mark.long
@pytest.mark.parametrize("passes", [1, 2])
def test_two_processes_train_what_one_trains(tmp_path, passes):
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
            *(str(HERE / "distributed_training.py"), str(tmp_path), str(passes)),
        ],
        check=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    settings = replace(SETTINGS, compile=False, distillation_weight=0.5, gradient_accumulation=passes)
    alone = trained(tmp_path / "alone", settings)
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-3)
    assert second["norms"] == first["norms"]
    assert (len(first["losses"]), second["losses"]) == (5, [])  # the first alone logs
    assert first["asked"] == second["asked"] == [0, 1, 2, 3, 4]
    assert (first["processes"], first["loss"]) == (2, second["loss"])
