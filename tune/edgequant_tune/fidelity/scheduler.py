"""Ray Tune's asynchronous successive halving, which knows of trials before this session too."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from edgequant_tune.fidelity.halving import REDUCTION_FACTOR
from edgequant_tune.trial_records import TrialRecord

METRIC = "metrics/validation/loss"  # as Ray flattens a report


def scheduler_of(rungs: Sequence[int], steps: int, earlier: Sequence[TrialRecord]) -> TrialScheduler:
    """Successive halving at the rungs (Li et al. 2020, arXiv 1810.05934); without any, no trial is stopped.

    Args:
        rungs: steps after which `validation/loss` is reported.
        steps: of a whole training.
        earlier: trials of an interrupted search, whose losses at the rungs count.
    """
    if not rungs:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="step",
        metric=METRIC,
        mode="min",
        max_t=steps,
        grace_period=rungs[0],
        reduction_factor=REDUCTION_FACTOR,
        stop_last_trials=False,  # the last report in training comes before the checkpoint is converted and measured
    )
    (bracket,) = scheduler._brackets  # Ray offers no way in from outside
    for record in earlier:
        for step, loss in sorted(record.rung_losses.items(), key=lambda item: int(item[0])):
            stand_in: Any = SimpleNamespace(trial_id=f"earlier {record.id}")
            bracket.on_result(stand_in, int(step), -loss)
    return scheduler
