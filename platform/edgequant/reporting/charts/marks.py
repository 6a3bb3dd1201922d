"""How a row is drawn and called in every chart: its number in the tables, its name, its variant's colour and shape.

Colours are those of Okabe and Ito (2008), told apart with every common colour vision; shapes need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgequant.reporting.columns import IDENTITY, Row, metric

VARIANT_COLORS = {
    "baseline": "#767676",
    "control": "#56B4E9",
    "ptq": "#E69F00",
    "control-ptq": "#D55E00",
    "qat": "#0072B2",
    "finetuned": "#009E73",
}
OTHER_COLORS = ("#CC79A7", "#F0E442", "#009E73", "#56B4E9", "#E69F00")
SINGLE_COLOR = "#0072B2"
SHAPES = ("circle", "square", "diamond", "triangle", "down", "hexagon")


class Mark(NamedTuple):
    """Of one row.

    Attributes:
        number: its place in the tables, from 1.
        label: what tells it from the others.
    """

    number: int
    label: str
    variant: str
    color: str
    shape: str


def marks(rows: Sequence[Row]) -> list[Mark]:
    """A mark for each row, the same in every chart of these rows."""
    variants = list(dict.fromkeys(str(row.get("variant", "")) for row in rows))
    shapes = {variant: SHAPES[at % len(SHAPES)] for at, variant in enumerate(variants)}
    named = zip(rows, row_labels(rows), colors(rows), strict=True)
    return [
        Mark(at, label, variant := str(row.get("variant", "")), color, shapes[variant])
        for at, (row, label, color) in enumerate(named, 1)
    ]


def row_labels(rows: Sequence[Row]) -> list[str]:
    """What tells the rows apart: those of model, variant and scheme that differ, and the run's name if none does."""
    varying = [key for key in IDENTITY if len({str(row.get(key, "")) for row in rows}) > 1]
    labels = [" ".join(str(row[key]) for key in varying if row.get(key) not in (None, "", "none")) for row in rows]
    plain = [
        label or str(row.get("variant") or row.get("model") or row.get("run") or "")
        for label, row in zip(labels, rows, strict=True)
    ]
    return [
        f"{label} {row['run']}" if plain.count(label) > 1 and row.get("run") else label
        for label, row in zip(plain, rows, strict=True)
    ]


def colors(rows: Sequence[Row]) -> list[str]:
    """A colour for each row, by variant; one for all where there is one variant."""
    variants = list(dict.fromkeys(str(row.get("variant", "")) for row in rows))
    if len(variants) < 2:
        return [SINGLE_COLOR] * len(rows)
    unknown = [variant for variant in variants if variant not in VARIANT_COLORS]
    given = VARIANT_COLORS | {name: OTHER_COLORS[i % len(OTHER_COLORS)] for i, name in enumerate(unknown)}
    return [given[str(row.get("variant", ""))] for row in rows]


def pareto_front(rows: Sequence[Row], x: str, y: str) -> list[int]:
    """Indices of the rows that no other row beats in both metrics (equal in one, better in the other counts as beaten).

    Returns:
        Indices by increasing x; empty when one of the metrics has no better end.
    """
    signs = [{"lower": 1.0, "higher": -1.0}.get(metric(name).better or "") for name in (x, y)]
    if None in signs:
        return []
    costs = [tuple(float(row[name]) * (sign or 0.0) for name, sign in zip((x, y), signs, strict=True)) for row in rows]
    front = [i for i, cost in enumerate(costs) if not any(_dominates(other, cost) for other in costs)]
    return sorted(front, key=lambda i: float(rows[i][x]))


def pareto_fronts(rows: Sequence[Row], x: str, y: str) -> list[list[int]]:
    """As `pareto_front`; one for each model where a perplexity is compared, which is per token of the model's own."""
    if not (x.endswith("/perplexity") or y.endswith("/perplexity")):
        return [pareto_front(rows, x, y)]
    groups: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(str(row.get("model", "")), []).append(at)
    return [[group[at] for at in pareto_front([rows[each] for each in group], x, y)] for group in groups.values()]


def listed(numbers: Sequence[int]) -> str:
    """Numbers of rows, in short: `1, 4–7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
