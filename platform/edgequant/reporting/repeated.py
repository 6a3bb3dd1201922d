"""A model that several workflows measured to measure others by it, the baseline mostly, is one model: told once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgequant.tracking.search import FinishedRun

REFERENCES = ("baseline", "quantized")  # variants that a workflow finds, and does not make
OF_THE_MACHINE = ("latency/", "energy/", "deploy/", "size/", "train/")  # metrics that every measurement has its own of


def identity(run: FinishedRun) -> tuple[str, ...]:
    """Model, variant and scheme of what a run measured."""
    return tuple(run.tags.get(f"edgequant.{key}", "") for key in ("model", "variant", "scheme"))


def repeats(runs: Sequence[FinishedRun], owners: Mapping[str, FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs that measured what another one shows, by the id of that one; what is measured alone is always shown.

    Where a workflow measured nothing else, somebody wanted that measurement: `baseline` and `evaluate`.

    Args:
        runs: measured models.
        owners: the workflow run that each belongs to, by id.
    """
    alone = {run.id for run in runs if sum(owners[other.id].id == owners[run.id].id for other in runs) == 1}
    shown = sorted(runs, key=lambda run: (run.id in alone, len(_scores(run)), run.start_time), reverse=True)
    found: dict[str, list[FinishedRun]] = {}
    for run in shown:
        if identity(run)[1] in REFERENCES and run.id not in alone:
            same = next((kept for kept in shown if kept.id in found and _is_same(runs=(kept, run))), None)
            if same is not None:
                found[same.id].append(run)
                continue
        found[run.id] = []
    return found


def _is_same(runs: tuple[FinishedRun, FinishedRun]) -> bool:
    """One identity, and the same score by every metric that both have; of machines they may differ."""
    ours, theirs = (_scores(run) for run in runs)
    shared = ours.keys() & theirs.keys()
    return (
        bool(shared)
        and identity(runs[0]) == identity(runs[1])
        and all(math.isclose(ours[name], theirs[name], rel_tol=1e-9) for name in shared)
    )


def _scores(run: FinishedRun) -> dict[str, float]:
    return of_the_model(run.metrics)


def of_the_model(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics that are the same wherever the model is measured."""
    return {name: value for name, value in metrics.items() if "/" in name and not name.startswith(OF_THE_MACHINE)}
