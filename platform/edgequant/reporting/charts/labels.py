"""Where the names of a chart's points stand: none covers another one, a point or a line, or leaves the chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Where a name lies beside its point, sideways first: most error bars stand upright.
SIDES = (
    *("middle right", "middle left", "top right", "bottom right", "top left", "bottom left"),
    *("top center", "bottom center"),
)
NEAR, POINT = 4.0, 7.0  # between a point's edge and its name, and from its centre to its edge
FAR = 14.0  # sideways to a name that a line joins to its point
SHIFTS = tuple(sign * step * 9.0 for step in range(1, 9) for sign in (-1, 1))  # of such a name, up or down


class Box(NamedTuple):
    """Left, top, right and bottom; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )  # fmt: skip

    def holds(self, point: tuple[float, float]) -> bool:
        return self.left <= point[0] <= self.right and self.top <= point[1] <= self.bottom

    def lies_in(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )  # fmt: skip


class Line(NamedTuple):
    """From one point to another."""

    x1: float
    y1: float
    x2: float
    y2: float

    def crosses(self, box: Box) -> bool:
        """Whether a part of it lies in the box (Liang and Barsky 1984)."""
        begin, end = 0.0, 1.0
        for start, step, low, high in (
            (self.x1, self.x2 - self.x1, box.left, box.right),
            (self.y1, self.y2 - self.y1, box.top, box.bottom),
        ):
            if step == 0:
                if not low < start < high:
                    return False
                continue
            first, last = sorted(((low - start) / step, (high - start) / step))
            begin, end = max(begin, first), min(end, last)
        return begin < end or (begin == end and (self.x1, self.y1) == (self.x2, self.y2))


class Label(NamedTuple):
    """A name that found a place: on which side of its point, what it covers, and the line that joins them where it
    lies apart."""

    side: str
    box: Box
    leader: Line | None = None


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    lines: Sequence[Line],
    area: Box,
    *,
    radius: float = POINT,
    covered: Sequence[Box] = (),
    leaders: bool = False,
) -> list[Label | None]:
    """A place for each name, None where all are taken.

    Args:
        points: centres, in the unit of everything here.
        sizes: width and height of each name.
        lines: what no name may be struck through by.
        area: what no name may leave.
        radius: of a point.
        covered: what else no name may lie on.
        leaders: whether a name may lie apart from its point, with a line between them.

    Returns:
        Of several orders of trying, the outcome with the most names.
    """
    centres = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points] + [*covered]
    found: list[list[Label | None]] = []
    for order in _orders(points):
        placed: list[Label | None] = [None] * len(points)
        for at in order:
            named = [label for label in placed if label]
            boxes = [label.box for label in named] + centres
            joined = [label.leader for label in named if label.leader]
            placed[at] = next(
                (
                    label
                    for label in _candidates(points[at], sizes[at], radius, leaders=leaders)
                    if _is_free(label, points[at], boxes, [*lines, *joined], area)
                ),
                None,
            )
        found.append(placed)
        if None not in placed:
            break
    return max(found, key=lambda placed: sum(label is not None for label in placed))


def _orders(points: Sequence[tuple[float, float]]) -> Iterator[list[int]]:
    given = list(range(len(points)))
    yield given
    for axis in (1, 0):
        ordered = sorted(given, key=lambda at: points[at][axis])
        yield ordered
        yield ordered[::-1]


def _candidates(
    point: tuple[float, float], size: tuple[float, float], radius: float, *, leaders: bool
) -> Iterator[Label]:
    for side in SIDES:
        yield Label(side, _box(point, size, side, radius))
    (x, y), (width, height) = point, size
    for shift in SHIFTS if leaders else ():
        for side, direction in (("middle right", 1), ("middle left", -1)):
            end = x + direction * (radius + FAR)
            left = end if direction > 0 else end - width
            middle = y + shift
            box = Box(left, middle - height / 2, left + width, middle + height / 2)
            yield Label(side, box, Line(x, y, end - direction * 2, middle))


def _is_free(label: Label, point: tuple[float, float], boxes: Sequence[Box], lines: Sequence[Line], area: Box) -> bool:
    others = [box for box in boxes if not box.holds(point)]
    return (
        label.box.lies_in(area)
        and not any(label.box.overlaps(box) for box in boxes)
        and not any(line.crosses(label.box) for line in lines)
        and (label.leader is None or not any(label.leader.crosses(box) for box in others))
    )


def _box(point: tuple[float, float], size: tuple[float, float], side: str, radius: float) -> Box:
    (x, y), (width, height) = point, size
    vertical, horizontal = side.split()
    near = radius + NEAR if vertical == "middle" else NEAR
    left = {"right": x + near, "left": x - near - width, "center": x - width / 2}[horizontal]
    top = {"top": y - radius - height, "bottom": y + radius, "middle": y - height / 2}[vertical]
    return Box(left, top, left + width, top + height)
