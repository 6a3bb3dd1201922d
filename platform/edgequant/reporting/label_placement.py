"""Where the labels of a scatter plot's points stand, so that they overlap least."""

from __future__ import annotations

# Sideways first: error bars stand upright.
POSITIONS = (
    *("middle right", "middle left", "top right", "bottom right", "top left", "bottom left"),
    *("top center", "bottom center"),
)


def label_positions(xs: list[float], ys: list[float], labels: list[str]) -> list[str]:
    """For each point the side on which its name covers the fewest other points and names, tried in a fixed order."""
    placed: list[tuple[float, float, float, float]] = []
    chosen = []
    where = list(zip(_unit(xs), _unit(ys), strict=True))
    for (x, y), label in zip(where, labels, strict=True):
        boxes = [_label_box(x, y, len(label), position) for position in POSITIONS]
        points = [(px - 0.02, py - 0.03, px + 0.02, py + 0.03) for px, py in where if (px, py) != (x, y)]
        costs = [sum(_overlap(box, other) for other in (*placed, *points)) + _outside(box) for box in boxes]
        best = costs.index(min(costs))
        placed.append(boxes[best])
        chosen.append(POSITIONS[best])
    return chosen


def _unit(values: list[float]) -> list[float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _label_box(x: float, y: float, characters: int, position: str) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a label, in units of the plot's width and height."""
    width, height = 0.011 * characters, 0.06
    vertical, horizontal = position.split()
    aside = 0.02 if vertical == "middle" else 0.0
    left = {"right": x + aside, "left": x - aside - width, "center": x - width / 2}[horizontal]
    bottom = {"top": y + 0.03, "bottom": y - 0.03 - height, "middle": y - height / 2}[vertical]
    return left, bottom, left + width, bottom + height


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _outside(box: tuple[float, float, float, float]) -> float:
    """A label that leaves the plot is cut off or covers the axis: as bad as covering another one."""
    left, bottom, right, top = box
    return max(0.0, -0.17 - left) + max(0.0, right - 1.17) + max(0.0, -0.17 - bottom) + max(0.0, top - 1.17)
