"""What every chart of the report comes to: a title, a picture and what has to be said under it."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

WIDTH = 400.0  # of each, in CSS pixels: three stand side by side at 1280, one alone at 390
LABEL, TICK = 13.0, 12.0  # heights of their fonts, as the page's style has them


class Chart(NamedTuple):
    """Attributes:
    title: what is shown.
    caption: which end is better, and what is not shown.
    svg: the picture.
    """

    title: str
    caption: str
    svg: Markup
