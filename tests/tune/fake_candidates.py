"""Candidates that train nothing: a known optimum, failures and slowness on demand. Imported by Ray's workers."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple


class Candidate(NamedTuple):
    metrics: dict[str, float]
    checkpoint: Path


def bowl(trial: Any, work_dir: Path, on_report: Any) -> Candidate:
    """Perplexity 10 at a learning rate of 1e-4, more further off; fewer bits are smaller and worse."""
    training = trial.training
    _note_call(work_dir, training)
    distance = math.log10(training.learning_rate / 1e-4) ** 2
    for step in range(1, training.steps + 1):
        held_out = {"validation/loss": distance + 1.0 / step} if step in trial.rungs else {}
        on_report(step, {"train/loss": distance + 1.0 / step} | held_out)
        time.sleep(float(os.environ.get("FAKE_SECONDS_PER_STEP", "0")))
    bits = 4 if trial.scheme.startswith("w4") else 8
    metrics = {"domain/perplexity": 10 + distance + (8 - bits), "size/checkpoint_gb": bits / 8}
    folder = Path(work_dir) / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"learning_rate": training.learning_rate}))
    return Candidate(metrics, folder)


def fragile(trial: Any, work_dir: Path, on_report: Any) -> Candidate:
    """Batches of more than 4 are refused, and a batch of 2 diverges."""
    if trial.training.batch_size > 4:
        raise ValueError(f"batch_size {trial.training.batch_size} does not fit")
    candidate = bowl(trial, work_dir, on_report)
    if trial.training.batch_size == 2:
        candidate.metrics["domain/perplexity"] = math.nan
    return candidate


def large(trial: Any, work_dir: Path, on_report: Any) -> Candidate:
    """A batch of 8 is more than the memory holds, one of 16 kills the process, and one of 3 does at every size."""
    training = trial.training
    if training.batch_size == 8:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
    if training.batch_size == 16:
        os.kill(os.getpid(), 9)
    if training.sequences_per_step == 3:
        raise MemoryError
    return bowl(trial, work_dir, on_report)


def broken(_trial: Any, _work_dir: Path, _on_report: Any) -> Candidate:
    raise OSError("disk is gone")


def _note_call(work_dir: Path, training: Any) -> None:
    with (Path(work_dir).parent.parent / "calls.txt").open("a") as calls:
        calls.write(f"{Path(work_dir).name} {training.learning_rate}\n")
