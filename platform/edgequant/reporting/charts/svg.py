"""SVG elements as text that can stand in a page; attributes and contents are escaped."""

from __future__ import annotations

import math

from markupsafe import Markup, escape

CORNERS = {"square": (4, 45.0), "diamond": (4, 0.0), "triangle": (3, -90.0), "down": (3, 90.0), "hexagon": (6, 0.0)}
GREATER = {"square": 1.15, "diamond": 1.25, "triangle": 1.3, "down": 1.3}  # so that all look as large as a circle


def element(name: str, content: Markup | str = "", **attributes: object) -> Markup:
    """`<name ...>content</name>`; a trailing underscore of an attribute's name is dropped, one inside is a hyphen."""
    told = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _text(value)) for key, value in attributes.items()
    )
    return Markup("<{}{}>{}</{}>").format(Markup(name), told, escape(content), Markup(name))


def picture(width: float, height: float, label: str, parts: list[Markup]) -> Markup:
    """A whole SVG, as wide as its place allows; `label` is what a screen reader says."""
    return element(
        "svg", Markup("").join(parts), viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label,
        style=f"max-width: {width * 1.15:g}px",
    )  # fmt: skip


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> Markup:
    """`anchor`: start, middle or end."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def symbol(x: float, y: float, shape: str, color: str, radius: float = 6.0) -> Markup:
    """A point: circle, square, diamond, triangle, down or hexagon."""
    if shape not in CORNERS:
        return element("circle", cx=x, cy=y, r=radius, fill=color, class_="mark")
    count, turned = CORNERS[shape]
    size = radius * GREATER.get(shape, 1.05)
    corners = [math.radians(turned + 360 * at / count) for at in range(count)]
    points = " ".join(f"{x + size * math.cos(each):.1f},{y + size * math.sin(each):.1f}" for each in corners)
    return element("polygon", points=points, fill=color, class_="mark")


def _text(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
