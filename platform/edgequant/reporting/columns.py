"""How a metric is shown to people: heading, unit, number of digits, and which end of the scale is better.

Light (no torch, no mlflow): the closing table on the terminal, Markdown, HTML and the plots all take it from here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat, TypeGuard

Row = Mapping[str, Any]
MISSING = "–"
LOW, HIGH = "_ci_low", "_ci_high"


@dataclass(frozen=True)
class Metric:
    """One metric's presentation.

    `scale` turns the stored number into the shown one (a fraction of 0.72 is 72 %); `digits` are significant digits.
    """

    heading: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    scale: float = 1.0
    digits: int = 3

    @property
    def label(self) -> str:
        return f"{self.heading} {self.unit}".strip()


@dataclass(frozen=True)
class Column:
    """A column ready to print: a heading with its unit, one cell per row, and which rows hold the best value."""

    key: str
    heading: str
    cells: list[str]
    best: frozenset[int]
    is_number: bool


# In the order in which people compare: quality, size, speed, honesty of the conversion, training.
METRICS: dict[str, Metric] = {
    "domain/perplexity": Metric("perplexity (domain)", "", "lower", digits=4),
    "wikitext2/perplexity": Metric("perplexity (WikiText-2)", "", "lower", digits=4),
    "wikitext2/bits_per_byte": Metric("bits/byte (WikiText-2)", "", "lower", digits=4),
    "boolq/accuracy": Metric("BoolQ accuracy", "%", "higher"),
    "boolq/balanced_accuracy": Metric("BoolQ balanced accuracy", "%", "higher"),
    "squad/exact_match": Metric("SQuAD exact match", "%", "higher"),
    "squad/f1": Metric("SQuAD F1", "%", "higher"),
    "size/checkpoint_gb": Metric("size", "GB", "lower"),
    "size/reduction_vs_fp16": Metric("smaller than fp16", "%", "higher"),
    "size/reduction_vs_fp32": Metric("smaller than fp32", "%", "higher"),
    "size/bits_per_parameter": Metric("bits/parameter", "", "lower"),
    "size/resident_gb": Metric("resident", "GB", "lower"),
    "latency/decode_ms_per_token": Metric("decode ms/token", "", "lower"),
    "latency/decode_ms_per_token_p90": Metric("decode ms/token p90", "", "lower"),
    "latency/prefill_ms_per_token": Metric("prefill ms/token", "", "lower"),
    "latency/prefill_ms_per_token_p90": Metric("prefill ms/token p90", "", "lower"),
    "latency/time_to_first_token_ms": Metric("first token", "ms", "lower"),
    "latency/time_to_first_token_ms_p90": Metric("first token p90", "ms", "lower"),
    "qat/recovered_fraction": Metric("PTQ loss recovered", "%", "higher", scale=100.0),
    "parity/max_logit_error": Metric("largest logit error", "", "lower"),
    "parity/argmax_agreement": Metric("same next token", "%", "higher", scale=100.0),
    "parity/perplexity_delta": Metric("perplexity drift", "", None),
    "train/tokens_per_second": Metric("training tokens/s", "", "higher"),
}
FURTHER = ("_p90", "vs_fp32", "bits_per_byte", "resident_gb")  # described above, but not what people compare first
HEADLINE = (
    *(key for key in METRICS if not key.endswith(FURTHER)),
    *("domain_qa/boolean_accuracy", "domain_qa/span_f1"),
)
CORE = (
    *("domain/perplexity", "wikitext2/perplexity", "boolq/accuracy", "squad/exact_match", "squad/f1"),
    *("size/checkpoint_gb", "size/reduction_vs_fp16", "size/bits_per_parameter"),
    *("latency/decode_ms_per_token", "qat/recovered_fraction"),
)
IDENTITY = ("model", "variant", "scheme")  # what names a row
_GIGABYTES_AS_MEGABYTES = 1000.0


def is_metric(key: str) -> bool:
    """A metric's name has a group before a slash, as MLflow's charts expect."""
    return "/" in key


def is_bound(key: str) -> bool:
    """Whether the key is one end of a confidence interval."""
    return key.endswith((LOW, HIGH))


def metric(key: str) -> Metric:
    """The presentation of a metric; one that nobody described keeps its own name and takes sides for nothing."""
    if key in METRICS:
        return METRICS[key]
    if matched := re.fullmatch(r"(.+)/perplexity", key):
        return Metric(f"perplexity ({_words(matched[1])})", "", "lower", digits=4)
    if matched := re.fullmatch(r"domain_qa/(.*(accuracy|f1|exact_match))", key):
        return Metric(f"domain QA {_words(matched[1])}", "%", "higher")
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
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that these rows fill: identity first, metrics in reading order, then whatever else they hold.

    Confidence bounds are shown inside their statistic's cell, as `62.1 (58.9 to 65.2)`.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    filled = [key for key in keys if any(row.get(key) not in (None, "") for row in rows)]
    shown = [key for key in filled if not (is_bound(key) and _without_bound(key) in filled)]
    return [_column(key, rows) for key in sorted(shown, key=_position)]


def headline(shown: list[Column], most: int) -> list[Column]:
    """All columns where at most `most` hold metrics; else names, texts and the metrics that people compare first."""
    if sum(is_metric(column.key) for column in shown) <= most:
        return shown
    return [column for column in shown if not is_metric(column.key) or column.key in HEADLINE]


def core(shown: list[Column]) -> list[Column]:
    """Names, texts and the few metrics that a decision rests on; everything where none of those is there."""
    kept = [column for column in shown if not is_metric(column.key) or column.key in CORE]
    return kept if any(is_metric(column.key) for column in kept) else shown


def best_rows(rows: Sequence[Row], key: str) -> frozenset[int]:
    """The rows that hold the best value; none when fewer than two rows differ, or when neither end is better.

    Perplexity is per token: where the rows are of several models, and so of several tokenizers, none is the best.
    """
    better = metric(key).better
    if key.endswith("/perplexity") and len({row.get("model") for row in rows}) > 1:
        return frozenset()
    finite = [index for index, row in enumerate(rows) if is_finite(row.get(key))]
    values = {index: float(rows[index][key]) for index in finite}
    if better is None or len(set(values.values())) < 2:
        return frozenset()
    target = min(values.values()) if better == "lower" else max(values.values())
    return frozenset(index for index, value in values.items() if value == target)


def _position(key: str) -> tuple[int, int]:
    if key in IDENTITY:
        return 0, IDENTITY.index(key)
    if not is_metric(key):
        return 1, 0  # sorted() is stable: these keep the order in which the rows gave them
    known = list(METRICS)
    return (2, known.index(key)) if key in known else (3, 0)


def _column(key: str, rows: Sequence[Row]) -> Column:
    values = [row.get(key) for row in rows]
    numbers = [float(value) for value in values if _is_number(value)]
    shown = shown_metric(key, numbers) if is_metric(key) else Metric(_words(key), digits=4)
    cells = [_cell(row, key, shown) for row in rows]
    best = best_rows(rows, key) if is_metric(key) else frozenset()
    return Column(key, shown.label, cells, best, is_number=len(numbers) == sum(value is not None for value in values))


def _cell(row: Row, key: str, shown: Metric) -> str:
    value = row.get(key)
    if value is None or value == "":
        return MISSING
    if not _is_number(value):
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    text = _number(value, shown)
    low, high = row.get(key + LOW), row.get(key + HIGH)
    if is_finite(low) and is_finite(high):
        return f"{text} ({_number(low, shown)} to {_number(high, shown)})"
    return text


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


def is_finite(value: Any) -> bool:
    """Whether a row's value is a number that can be drawn and compared."""
    return _is_number(value) and math.isfinite(float(value))
