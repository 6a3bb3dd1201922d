"""How a metric is shown to people: heading, unit, number of digits, and which end of the scale is better.

Light (no torch, no mlflow): the summary table on the terminal, Markdown, HTML and the plots all take it from here.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, SupportsFloat, TypeGuard

from edgequant.errors import UserError
from edgequant.evaluation.evidence import floor_of, is_evidence, is_exact, lacks_interval
from edgequant.evaluation.statistics.verdicts import difference_of_intervals, side
from edgequant.evaluation.tasks.registry import TASKS, find_task, known_tasks, paired_metrics
from edgequant.evaluation.tasks.task import Metric, Task

Row = Mapping[str, Any]
MISSING = "–"
BEST_IN = "best_in"  # key of a row, as `evaluation.ranking` writes it
LOW, HIGH = "_ci_low", "_ci_high"


@dataclass(frozen=True)
class Column:
    """A column ready to print: a heading with its unit and what all of it stands on, one cell per row, and which rows
    hold the best value."""

    key: str
    heading: str
    cells: list[str]
    best: frozenset[int]
    is_number: bool
    counted: str = ""


# What no task measures; the tasks describe their own metrics.
_SIZE = {
    "size/checkpoint_gb": Metric("size", "GB", "lower"),
    "size/reduction_vs_fp16": Metric("size reduction vs fp16", "%", "higher", prominence="summary"),
    "size/reduction_vs_fp32": Metric("size reduction vs fp32", "%", "higher", prominence="detail"),
    "size/bits_per_parameter": Metric("bits/parameter", "", "lower", prominence="summary"),
    "size/resident_gb": Metric("resident", "GB", "lower", prominence="detail"),
}
_DEPLOY = {
    "deploy/format": Metric("shipped format", prominence="summary"),
    "deploy/size_gb": Metric("shipped size", "GB", "lower", prominence="summary"),
    "deploy/reduction_vs_fp16": Metric("shipped reduction vs fp16", "%", "higher", prominence="summary"),
    "deploy/fits": Metric("fits the device (1: yes)", "", "higher", prominence="summary"),
    "deploy/peak_rss_gb": Metric("shipped peak RSS", "GB", "lower", prominence="table"),
    "deploy/tokens_per_second": Metric("shipped tokens/s", "", "higher", prominence="table"),
    "deploy/headroom_gb": Metric("memory left on the device", "GB", "higher", prominence="table"),
    "deploy/disk_headroom_gb": Metric("disk left on the device", "GB", "higher", prominence="detail"),
    "deploy/threads": Metric("shipped threads", digits=1, prominence="table"),
    "deploy/load_ms_p90": Metric("shipped load p90", "ms", "lower", prominence="detail"),
}
# What is timed of a model is timed of what ships as well.
_TIMED = {
    name.replace("latency/", "deploy/"): replace(
        shown,
        heading=f"shipped {shown.heading}",
        prominence="summary" if shown.prominence == "figure" else shown.prominence,
    )
    for name, shown in find_task("latency").display.items()
}
_CONVERSION_AND_TRAINING = {
    "qat/recovered_fraction": Metric("PTQ loss recovered", "%", "higher", scale=100.0, prominence="summary"),
    "parity/max_logit_error": Metric("largest logit error", "", "lower", prominence="table"),
    "parity/argmax_agreement": Metric("top-1 agreement", "%", "higher", scale=100.0, prominence="table"),
    "parity/perplexity_delta": Metric("perplexity drift", "", None, prominence="table"),
    "train/tokens_per_second": Metric("training tokens/s", "", "higher", prominence="table"),
}
IDENTITY = ("model", "variant", "scheme")  # what names a row
_GIGABYTES_AS_MEGABYTES = 1000.0


@cache
def described_metrics() -> Mapping[str, Metric]:
    """All metrics that somebody described, in the order in which people compare: quality, size, speed, honesty of the
    conversion, training."""
    tasks = shown_tasks()
    quality, efficiency = (
        {name: shown for task in tasks if task.kind == kind for name, shown in task.display.items()}
        for kind in ("quality", "efficiency")
    )
    return quality | _SIZE | _DEPLOY | _TIMED | efficiency | _CONVERSION_AND_TRAINING


def shown_tasks() -> tuple[Task, ...]:
    """The known tasks. A package that cannot be loaded costs its metrics' headings, not a finished run its table."""
    try:
        return known_tasks()
    except UserError:
        return TASKS


def figure_metrics() -> tuple[str, ...]:
    """Metrics with plots of their own."""
    return _of_prominence("figure")


def summary_metrics() -> tuple[str, ...]:
    """The few metrics that a decision rests on."""
    return _of_prominence("figure", "summary")


def _of_prominence(*wanted: str) -> tuple[str, ...]:
    return tuple(name for name, shown in described_metrics().items() if shown.prominence in wanted)


def is_metric(key: str) -> bool:
    """A metric's name has a group before a slash, as MLflow's charts expect."""
    return "/" in key


def is_bound(key: str) -> bool:
    """Whether the key is one end of a confidence interval."""
    return key.endswith((LOW, HIGH))


def metric(key: str) -> Metric:
    """The presentation of a metric; one that nobody described keeps its own name and takes sides for nothing."""
    if key in (described := described_metrics()):
        return described[key]
    if matched := re.fullmatch(r"(.+)/perplexity", key):
        return Metric(f"perplexity ({_words(matched[1])})", "", "lower", digits=4)
    return Metric(_words(key), digits=4)


def shown_metric(key: str, values: Sequence[float]) -> Metric:
    """As `metric`, in megabytes (10^6 bytes) where every size of the column is below one gigabyte."""
    found = metric(key)
    finite = [abs(value) for value in values if math.isfinite(value)]
    if found.unit == "GB" and finite and max(finite) < 1:
        return Metric(found.heading, "MB", found.better, _GIGABYTES_AS_MEGABYTES, found.digits)
    return found


def significant(value: float, digits: int) -> str:
    """Plain decimals with `digits` significant ones: 21.78, 4,096, 0.0123; 1.2e-05 below a thousandth."""
    if not is_finite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that these rows fill: identity first, metrics in reading order, then whatever else they hold.

    Confidence bounds are shown inside their statistic's cell, as `62.1 (58.9 to 65.2)`, and so is that there are none,
    and that a value is not told from what a model scores that knows nothing. How many questions or documents it stands
    on is in the heading, or in the cells where rows stand on different ones.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    filled = [key for key in keys if any(row.get(key) not in (None, "") for row in rows)]
    told = {metric(key).floor for key in filled} | {name for key in filled for name in metric(key).counts} | {BEST_IN}
    shown = [key for key in filled if key not in told and not (is_bound(key) and _without_bound(key) in filled)]
    return [_column(key, rows) for key in sorted(shown, key=_position)]


def headline(shown: list[Column], most: int) -> list[Column]:
    """All columns where at most `most` hold metrics; else names, texts and the metrics that people compare first."""
    if sum(is_metric(column.key) for column in shown) <= most:
        return shown
    kept = _of_prominence("figure", "summary", "table")
    return [column for column in shown if not is_metric(column.key) or column.key in kept]


def core(shown: list[Column]) -> list[Column]:
    """Names, texts and the few metrics that a decision rests on; everything where none of those is there."""
    summary = summary_metrics()
    kept = [column for column in shown if not is_metric(column.key) or column.key in summary]
    return kept if any(is_metric(column.key) for column in kept) else shown


def best_rows(rows: Sequence[Row], key: str) -> frozenset[int]:
    """The rows that hold the best value; none when fewer than two rows differ, or when neither end is better.

    What was measured on a sample, or timed, has to be shown to be the best: by the items that rows share, where
    somebody compared them (`ranking.with_best`), else by intervals; none where that is undecided.
    Perplexity is per token: where the rows are of several models, and so of several tokenizers, none is the best.
    """
    better = metric(key).better
    if key.endswith("/perplexity") and len({row.get("model") for row in rows}) > 1:
        return frozenset()
    finite = [index for index, row in enumerate(rows) if is_finite(row.get(key)) and is_evidence(key, row[key])]
    values = {index: float(rows[index][key]) for index in finite}
    if better is None or len(set(values.values())) < 2:
        return frozenset()
    target = min(values.values()) if better == "lower" else max(values.values())
    best = frozenset(index for index, value in values.items() if value == target)
    return best if is_exact(key) or _is_shown_best(rows, key, best, values) else frozenset()


def _is_shown_best(rows: Sequence[Row], key: str, best: frozenset[int], values: Mapping[int, float]) -> bool:
    if len(best) > 1:
        return False
    (own,) = best
    if any(BEST_IN in row for row in rows) and key in {paired.metric for paired in paired_metrics()}:
        return key in str(rows[own].get(BEST_IN, "")).split(", ")
    return all(_are_apart(rows[own], rows[other], key) for other in values if other != own)


def _are_apart(one: Row, other: Row, key: str) -> bool:
    a, b = (_bounded(row, key) for row in (one, other))
    return a is not None and b is not None and side(*difference_of_intervals(a, b)) in ("above", "below")


def _bounded(row: Row, key: str) -> tuple[float, float, float] | None:
    """A value with its interval."""
    value, low, high = (row.get(name) for name in (key, key + LOW, key + HIGH))
    return (float(value), float(low), float(high)) if is_finite(value) and is_finite(low) and is_finite(high) else None


def _position(key: str) -> tuple[int, int]:
    if key in IDENTITY:
        return 0, IDENTITY.index(key)
    if not is_metric(key):
        return 1, 0  # sorted() is stable: these keep the order in which the rows gave them
    known = list(described_metrics())
    return (2, known.index(key)) if key in known else (3, 0)


def _column(key: str, rows: Sequence[Row]) -> Column:
    values = [row.get(key) for row in rows]
    numbers = [float(value) for value in values if _is_number(value)]
    shown = shown_metric(key, numbers) if is_metric(key) else Metric(_words(key), digits=4)
    counted = counted_on(rows, key)
    cells = [_cell(row, key, shown, counted=not counted) for row in rows]
    best = _shown_as_best(best_rows(rows, key), rows, key, shown) if is_metric(key) else frozenset()
    heading = ", ".join(filter(None, (shown.label, counted)))
    is_number = len(numbers) == sum(value is not None for value in values)
    return Column(key, heading, cells, best, is_number, counted)


def _shown_as_best(best: frozenset[int], rows: Sequence[Row], key: str, shown: Metric) -> frozenset[int]:
    """With the rows whose number reads the same; none where all do: a mark would tell of digits that nobody sees."""
    read = {at: _number(row[key], shown) for at, row in enumerate(rows) if _is_number(row.get(key))}
    same = frozenset(at for at, text in read.items() if text in {read[index] for index in best})
    return frozenset() if len(set(read.values())) < 2 else same


def counted_on(rows: Sequence[Row], key: str) -> str:
    """What all rows that have the metric stand on: `200 questions of 187 passages`; empty where that differs, or nobody
    counted."""
    found = {metric(key).counted(row) for row in rows if is_finite(row.get(key))}
    return found.pop() if len(found) == 1 else ""


def _cell(row: Row, key: str, shown: Metric, *, counted: bool) -> str:
    value = row.get(key)
    if value is None or value == "":
        return MISSING
    if not _is_number(value):
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    text = _number(value, shown)
    low, high = row.get(key + LOW), row.get(key + HIGH)
    if is_finite(low) and is_finite(high):
        text += f" ({_number(low, shown)} to {_number(high, shown)})"
    elif lacks_interval(key, row):
        text += " (no interval)"
    return ", ".join(filter(None, (text, floor_of(key, row), metric(key).counted(row) if counted else "")))


def _number(value: Any, shown: Metric) -> str:
    if isinstance(value, int):
        return f"{value * shown.scale:,.0f}"
    return significant(float(value) * shown.scale, shown.digits)


def _words(key: str) -> str:
    return key.replace("/", " ").replace("_", " ").strip()


def _without_bound(key: str) -> str:
    return key.removesuffix(LOW).removesuffix(HIGH)


def _is_number(value: Any) -> TypeGuard[SupportsFloat]:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool | str)


def is_finite(value: Any) -> TypeGuard[SupportsFloat]:
    """Whether a row's value is a number that can be drawn and compared."""
    return _is_number(value) and abs(float(value)) < sys.float_info.max  # which MLflow's database keeps for infinity
