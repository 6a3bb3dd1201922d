"""The best quantised model among rows, and how it stands against the baseline that it was made of. Light: no numpy."""

from __future__ import annotations

from collections.abc import Sequence

from edgequant.reporting.columns import Row, best_rows, columns, figure_metrics, is_finite, metric

SIZE, REDUCTION, DECODE = "size/checkpoint_gb", "size/reduction_vs_fp16", "latency/decode_ms_per_token"


def finding(rows: Sequence[Row]) -> list[str]:
    """How the best quantised model stands against the baseline that it was made of, if both are there."""
    at, quality = best_quantized(rows, range(len(rows)))
    if at is None or quality is None:
        return []
    best = rows[at]
    plain = [row for row in rows if row.get("variant") == "baseline" and _is_plain(row)]
    baseline = next((row for row in plain if row.get("model") == best.get("model")), None)
    if baseline is None or not is_finite(baseline.get(quality)):
        return []
    shown = {column.key: column for column in columns([baseline, best])}
    before, after = shown[quality].cells
    size = f", {shown[REDUCTION].cells[1]} % smaller than fp16" if REDUCTION in shown else ""
    label = f"{best['variant']} {best['scheme']}{size}"
    candidates = [row for row in rows if _is_candidate(row) and is_finite(row.get(quality))]
    others = len(candidates) > 1 and not best_rows(candidates, quality)
    lead = "Best quantised, not told from the next" if others else "Best quantised"
    return [f"{lead}: {label}; {shown[quality].heading}: {after} (baseline {before})."]


def best_quantized(rows: Sequence[Row], among: Sequence[int]) -> tuple[int | None, str | None]:
    """The quantised row with the best value of the first quality metric that two rows have, and that metric."""
    quality = next((name for name in _quality() if sum(is_finite(rows[at].get(name)) for at in among) > 1), None)
    if quality is None:
        return None, None
    fit = [at for at in among if _is_candidate(rows[at]) and is_finite(rows[at].get(quality))]
    return min(fit, key=lambda at: _cost(rows[at], quality), default=None), quality


def _quality() -> list[str]:
    return [name for name in figure_metrics() if name not in (SIZE, DECODE)]


def _is_plain(row: Row) -> bool:
    return row.get("scheme") in (None, "", "none")


def _is_candidate(row: Row) -> bool:
    is_other = str(row.get("variant")).startswith(("baseline", "control"))
    return not is_other and not _is_plain(row) and is_finite(row.get(SIZE))


def _cost(row: Row, name: str) -> float:
    return float(row[name]) * (-1 if metric(name).better == "higher" else 1)
