"""Search specs of `tiny` for tests; what a test does not vary is the same in all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.trial_spec import TrainCandidate

RATE = {"learning_rate": {"log_uniform": [1e-6, 1e-2]}}


def search_spec(train: TrainCandidate | None = None, **options: Any) -> SearchSpec:
    """A search of learning rates for `tiny` on the CPU; `options` are those of `tune`.

    Args:
        train: trains a candidate in the place of the method's own function.
    """
    usual: dict[str, Any] = {
        "model": "tiny", "method": "qat", "scheme": "w4a8-g32+emb4", "dataset": "disaster", "space": RATE,
        "objectives": ["domain/perplexity"], "trials": 5, "time_budget_minutes": None, "scheduler": "none",
        "concurrent_trials": None, "cpus_per_trial": 1.0, "gpus_per_trial": 0.0,
        "training": TrainingSettings(steps=8, learning_rate=1e-3), "qat": QatSettings(),
        "calibration": CalibrationSettings(), "lora": LoraSettings(), "evaluation": EvaluationSettings(),
        "output": "outputs/tune", "run": RunSettings(device="cpu"),
    }  # fmt: skip
    spec = SearchSpec.from_options(**(usual | options))
    return spec if train is None else replace(spec, trial=replace(spec.trial, train=train))
