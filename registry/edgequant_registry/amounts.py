"""Values of metrics, and differences of them, as reasons say them: in the unit in which a policy states its bounds."""

from __future__ import annotations

from edgequant.reporting.columns import metric

PER_CENT = "%"


def amount(name: str, value: float) -> str:
    """`70.34 %`, `0.0781 GB`, `8.1 ms`; a perplexity or a share of 1 has no unit."""
    return f"{value:.4g}{_unit(name)}"


def difference(name: str, value: float) -> str:
    """`2 points` between two values in per cent."""
    unit, told = _unit(name), f"{value:.4g}"
    if unit != f" {PER_CENT}":
        return f"{told}{unit}"
    return f"{told} {'point' if told == '1' else 'points'}"


def _unit(name: str) -> str:
    shown = metric(name)
    if shown.unit and shown.scale == 1:
        return f" {shown.unit}"
    return " ms" if "_ms" in name else ""
