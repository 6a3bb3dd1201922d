"""The table: one line per file, several seeds in one, each figure with its interval."""

from __future__ import annotations

import math
import statistics

from peers.ptq_rows import Row
from peers.table import markdown_table

from edge_rows.files import F16, WITH_MATRIX, Key
from edgequant.evaluation.harm import Loss, losses

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # two-sided, n - 1
COLUMNS = {
    "MB": ("deploy/size_gb", 1000, 1),
    "smaller than fp16, %": ("size/reduction_vs_fp16", 1, 1),
    "WikiText-2 perplexity": ("wikitext2/perplexity", 1, 2),
    "domain perplexity": ("domain/perplexity", 1, 2),
    "BoolQ, %": ("boolq/accuracy", 1, 1),
    "SQuAD F1": ("squad/f1", 1, 1),
    "decode, ms": ("deploy/decode_ms_per_token", 1, 2),
    "prefill, ms": ("deploy/prefill_ms_per_token", 1, 2),
    "first token, ms": ("deploy/time_to_first_token_ms", 1, 0),
    "peak RSS, MB": ("deploy/peak_rss_gb", 1000, 0),
}
LOST = "wikitext2/perplexity"
PAIRED = {"WikiText-2": LOST, "domain": "domain/perplexity", "BoolQ": "boolq/accuracy", "SQuAD F1": "squad/f1"}


def edge_table(found: list[tuple[Key, Row]]) -> str:
    """Markdown: every system, its figures, and what its perplexity lost beside F16's."""
    systems: dict[str, list[Row]] = {}
    for key, row in found:
        systems.setdefault(key.label, []).append(row)
    start = statistics.mean(row.metrics[LOST] for row in systems[F16]) if F16 in systems else math.nan
    lines = [
        [f"{system} ({len(rows)} seeds)" if len(rows) > 1 else system, _lost(rows, start), *_cells(rows)]
        for system, rows in systems.items()
    ]
    return markdown_table(["file", "loses", *COLUMNS], lines)


def paired_table(found: list[tuple[Key, Row]]) -> str:
    """Markdown: how much worse each file is than F16 and than Q4_0 with the importance matrix, with 95 % intervals.

    Perplexities in per cent, tasks in points; paired item by item (windows' articles, documents, passages and articles
    resampled); adjusted by nothing: each cell stands for itself. + is worse.
    """
    references = {key.system: row for key, row in found if key.system in (F16, WITH_MATRIX) and key.seed == 0}
    heads = [f"{name} against {reference}" for reference in references for name in PAIRED]
    lines = [
        [f"{key.label} seed {key.seed}", *(cell for each in references.values() for cell in _paired(each, row))]
        for key, row in found
    ]
    return markdown_table(["file", *heads], lines)


def _paired(reference: Row, row: Row) -> list[str]:
    if row is reference or not (row.items and reference.items):
        return ["" for _ in PAIRED]
    lost = {each.metric: each for each in losses(reference.items, row.items, perplexity_margin=0.0, task_margin=0.0)}
    return [_told(lost[name]) if name in lost else "-" for name in PAIRED.values()]


def _told(loss: Loss) -> str:
    unit = " %" if loss.unit == "%" else ""
    if loss.low is None or loss.high is None:
        return f"{loss.loss:+.1f}{unit}"
    return f"{loss.loss:+.1f}{unit} ({loss.low:+.1f} to {loss.high:+.1f})"


def _cells(rows: list[Row]) -> list[str]:
    return [_cell(rows, name, factor, digits) for name, factor, digits in COLUMNS.values()]


def _lost(rows: list[Row], start: float) -> str:
    """Per cent of perplexity above the model's as it came."""
    return f"{100 * (statistics.mean(row.metrics[LOST] for row in rows) / start - 1):+.1f} %"


def _cell(rows: list[Row], name: str, factor: float, digits: int) -> str:
    values = [row.metrics[name] * factor for row in rows if name in row.metrics]
    if not values:
        return "-"
    low, high = _interval(rows, name, factor, values)
    shown = f"{statistics.mean(values):.{digits}f}"
    return shown if math.isnan(low) or low == high else f"{shown} ({low:.{digits}f} to {high:.{digits}f})"


def _interval(rows: list[Row], name: str, factor: float, values: list[float]) -> tuple[float, float]:
    if len(values) > 1:
        half = T_95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
        return statistics.mean(values) - half, statistics.mean(values) + half
    bounds = (rows[0].metrics.get(f"{name}_ci_{end}", math.nan) for end in ("low", "high"))
    low, high = (bound * factor for bound in bounds)
    return low, high
