"""One process of a training that several share: started by test_processes through torch.distributed.run."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from edgequant import models
from edgequant.quantization.layers.convert import prepare, set_phase
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.loop import train
from edgequant.training.processes import from_main_process, is_main_process, launched_processes
from edgequant.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    steps=5, batch_size=4, sequence_length=32, learning_rate=3e-3, precision="float32", save_steps=3
)


def sequences() -> torch.Tensor:
    starts = torch.randint(0, 250, (24, 1), generator=torch.Generator().manual_seed(0))
    return (starts + torch.arange(32)) % 250


def trained(folder: Path, settings: TrainingSettings) -> dict:
    """Losses and norms after QAT of the tiny model, with its own predictions before as the teacher's."""
    torch.manual_seed(0)
    floating = models.load("tiny", dtype="float32", device="cpu").model
    model = models.load("tiny", dtype="float32", device="cpu").model.requires_grad_(True)
    prepare(model, parse_scheme("w4a8-g32+emb4"))
    losses, asked = [], []

    def before_step(done: int, steps: int) -> None:
        set_phase(model, quantize_inputs=done > 0, observe=False)
        asked.append(from_main_process(lambda: done if is_main_process() else -1))

    result = train(
        model, sequences(), settings, folder / "training", teacher=floating, on_step=before_step,
        on_log=lambda _, metrics: losses.append(metrics["train/loss"]),
    )  # fmt: skip
    norms = {name: float(parameter.detach().norm()) for name, parameter in model.named_parameters()}
    return {"losses": losses, "norms": norms, "loss": result.loss, "asked": asked}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    settings = replace(SETTINGS, compile=False, distillation_weight=0.5, gradient_accumulation=int(sys.argv[2]))
    rank = os.environ["RANK"]
    made = trained(out, settings) | {"processes": launched_processes()}
    (out / f"rank-{rank}.json").write_text(json.dumps(made))
