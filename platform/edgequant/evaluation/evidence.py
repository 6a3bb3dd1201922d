"""Which measured numbers are evidence: those that are none end an evaluation, weak ones are told. Light: no numpy."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.tasks.registry import owner_of
from edgequant.evaluation.tasks.task import Evaluation, Task

# Sizes, times and memory of what ships, which no task owns: all but reductions, headrooms and `deploy/fits`.
_SHIPPED_POSITIVE = tuple(
    f"deploy/{name}"
    for name in ("size_gb", "load_ms", "time_to_first_token_ms", "prefill_ms", "decode_ms", "peak_rss_gb", "threads")
)

_EXACT = (
    "size/",
    "parity/",
    *(f"deploy/{name}" for name in ("size_gb", "reduction", "fits", "headroom", "disk_headroom", "threads")),
)


def checked(task: Task, measured: Evaluation) -> Evaluation:
    """What a task measured, with remarks on what shows little; other metrics than the headline are left out with one.

    Raises:
        UserError: a displayed metric is not finite, or took no time; names it.
    """
    for name in task.display:
        if name in measured.metrics and not is_evidence(name, measured.metrics[name]):
            raise UserError(_refusal(name, measured.metrics[name]))
    broken = [name for name, value in measured.metrics.items() if not math.isfinite(value)]
    metrics = {name: value for name, value in measured.metrics.items() if name not in broken}
    notes = [f"{name} was left out: it is {measured.metrics[name]:g}" for name in broken]
    return replace(measured, metrics=metrics, notes=[*measured.notes, *notes, *remarks(task, metrics)])


def is_evidence(name: str, value: float) -> bool:
    """Whether a metric's value can be one: finite, and above 0 for a time, an energy or a perplexity.

    MLflow's database keeps infinity as the greatest float, which is none either.
    """
    if not math.isfinite(value) or abs(value) >= sys.float_info.max:
        return False
    return value > 0 or not _is_positive(name)


def is_exact(name: str) -> bool:
    """Whether a metric is the same however often it is measured: a size, a conversion's error; no sample, no time."""
    return name.startswith(_EXACT)


def remarks(task: Task, metrics: Mapping[str, Any]) -> list[str]:
    """Of a task's displayed metrics, which have no interval and which lie at their floor."""
    shown = {name: metric for name, metric in task.display.items() if name in metrics}
    bare = [name for name in shown if _is_sampled(name, task) and not _is_bounded(name, metrics)]
    floors = {name: metric.floor_of(name, metrics) for name, metric in shown.items()}
    return [
        *(f"{name} has no confidence interval: that takes two items that differ" for name in bare),
        *(
            f"{name} {metrics[name]:.4g}: {floor}, so that a loss hardly shows"
            for name, floor in floors.items()
            if floor
        ),
    ]


def floor_of(name: str, metrics: Mapping[str, Any]) -> str:
    """As `Metric.floor_of`, of any metric; empty for one that nobody displays."""
    owner = _owner(name)
    return owner.display[name].floor_of(name, metrics) if owner and name in owner.display else ""


def lacks_interval(name: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a metric is the statistic of a sample (a quality task displays it) that has no confidence interval."""
    return _is_sampled(name, _owner(name)) and not _is_bounded(name, metrics)


def _is_sampled(name: str, task: Task | None) -> bool:
    return task is not None and task.kind == "quality" and name in task.display


def _is_bounded(name: str, metrics: Mapping[str, Any]) -> bool:
    return all(metrics.get(f"{name}_ci_{end}") is not None for end in ("low", "high"))


def _owner(name: str) -> Task | None:
    """A package that cannot be loaded costs its metrics' remarks, not a finished run its table."""
    try:
        return owner_of(name)
    except UserError:
        return None


def _is_positive(name: str) -> bool:
    owner = _owner(name)
    displayed = owner is not None and owner.kind == "efficiency" and name in owner.display
    return displayed or name.endswith("perplexity") or name.startswith(_SHIPPED_POSITIVE)


def _refusal(name: str, value: float) -> str:
    if name.startswith("latency/"):
        return (
            f"{name} must be above 0, got {value:g}: nothing was timed; raise evaluation.latency_new_tokens or "
            "evaluation.latency_repetitions"
        )
    return (
        f"{name} must be a finite number, got {value:g}: the model is broken, or its text cannot be scored; "
        "look at its weights, or use dtype float32"
    )
