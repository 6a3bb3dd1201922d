"""What runs in a Ray worker: one trial trains one candidate and reports it; it writes to no tracking store."""

from __future__ import annotations

import gc
import importlib
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.files import write_atomically
from edgequant.quantization.settings import QuantizationSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant_tune.search_space import SCHEME

TRIALS_FOLDER = "trials"
TRACEBACK = "traceback.txt"
HELD_OUT = "validation/loss"  # reported at the rungs; what successive halving compares
# What trains one candidate, by method, as `module:function`; see `train_candidate.qat_candidate` for the signature.
CANDIDATES = {
    "qat": "edgequant_tune.train_candidate:qat_candidate",
    "finetune": "edgequant_tune.train_candidate:finetune_candidate",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all trials of a search share.

    Attributes:
        candidate: `module:function` of what trains one candidate.
        training, quantization, lora: a trial replaces the searched fields.
        evaluation: what a trial is measured on.
        folder: absolute path of the search; trial ID works in `trials/ID`.
        rungs: steps at which trials are compared in training.
    """

    candidate: str
    model: str
    scheme: str
    training: TrainingSettings
    quantization: QuantizationSettings
    lora: LoraSettings
    evaluation: EvaluationSettings
    text: str
    data_dir: str | None
    device: str
    seed: int
    folder: str
    rungs: tuple[int, ...]

    def trial_folder(self, trial_id: str) -> Path:
        return Path(self.folder) / TRIALS_FOLDER / trial_id


def trainable(job: Job) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune calls with each trial's hyperparameters."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        run_trial(job, config, tune.get_context().get_trial_id() or "trial", tune.report)

    return trial


def run_trial(job: Job, values: Mapping[str, Any], trial_id: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Train one candidate; report its metrics as training goes and, complete, as measured on the reloaded checkpoint.

    A report holds `step`, `complete`, `metrics` (contract names) and, when complete, the `checkpoint`'s folder.
    """
    work_dir = job.trial_folder(trial_id)
    shutil.rmtree(work_dir, ignore_errors=True)  # what an interrupted attempt at the same trial left
    work_dir.mkdir(parents=True)
    training = with_values(job.training, values)
    try:
        metrics, checkpoint = _import(job.candidate)(
            job.model,
            values.get(SCHEME, job.scheme),
            training=training,
            quantization=with_values(job.quantization, values),
            lora=with_values(job.lora, values),
            evaluation=job.evaluation,
            text=job.text,
            data_dir=job.data_dir,
            device=job.device,
            seed=job.seed,
            work_dir=work_dir,
            rungs=job.rungs,
            on_evaluate=lambda step, found: report({"step": step, "complete": False, "metrics": dict(found)}),
        )
    except Exception:
        write_atomically(job.trial_folder(trial_id) / TRACEBACK, traceback.format_exc())
        raise
    finally:
        _release_memory()
    report({"step": training.steps, "complete": True, "metrics": dict(metrics), "checkpoint": str(checkpoint)})


def with_values(settings: Any, values: Mapping[str, Any]) -> Any:
    """A settings dataclass with those hyperparameters that are its fields."""
    own = {item.name for item in fields(settings)}
    return replace(settings, **{name: value for name, value in values.items() if name in own})


def _import(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _release_memory() -> None:
    """A worker serves trial after trial: give back what the last one held, for trials beside this one too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
