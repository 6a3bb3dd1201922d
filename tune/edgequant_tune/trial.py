"""What runs in a Ray worker: one trial trains one candidate and reports it; it writes to no tracking store."""

from __future__ import annotations

import gc
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from edgequant.files import write_atomically
from edgequant_tune.objectives import violation
from edgequant_tune.trial_spec import TrialSpec

TRACEBACK = "traceback.txt"


def trainable(spec: TrialSpec) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune calls with each trial's hyperparameters."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        run_trial(spec, config, tune.get_context().get_trial_id() or "trial", tune.report)

    return trial


def run_trial(
    spec: TrialSpec, values: Mapping[str, Any], trial_id: str, report: Callable[[dict[str, Any]], None]
) -> None:
    """Train one candidate; report its metrics as training goes and, complete, as measured on the reloaded checkpoint.

    A report holds `step`, `complete`, `metrics` (by metric name) and, when complete, the `checkpoint`'s folder.
    """
    work_dir = spec.trials_folder / trial_id
    shutil.rmtree(work_dir, ignore_errors=True)  # what an interrupted attempt at the same trial left
    work_dir.mkdir(parents=True)
    candidate = spec.with_values(values)
    try:
        metrics, checkpoint = spec.train(
            candidate,
            work_dir,
            lambda step, found: report({"step": step, "complete": False, "metrics": dict(found)}),
        )
    except Exception:
        write_atomically(work_dir / TRACEBACK, traceback.format_exc())
        raise
    finally:
        _release_memory()
    report(
        {
            "step": candidate.training.steps,
            "complete": True,
            "metrics": dict(metrics) | violation(spec.constraints, metrics),
            "checkpoint": str(checkpoint),
        }
    )


def _release_memory() -> None:
    """A worker serves trial after trial: give back what the last one held, for trials beside this one too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
