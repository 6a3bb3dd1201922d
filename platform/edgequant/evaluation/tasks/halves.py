"""Two halves of a data set that has one split: a search chooses by one, and reports the other. Light: no numpy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import Rows

TEXTS = ("passage", "context", "document")  # what several questions are about, so that they belong together


class Halves(NamedTuple):
    """Rows to choose by, and rows to report."""

    select: Rows
    report: Rows


def halves(rows: Rows, units: Callable[[Rows], Sequence[Rows]] | None = None) -> Halves:
    """Split rows by a hash of the text that they are about: the same row is always in the same half.

    Questions about one passage or document stay together, for whoever has chosen by one of them knows it; so do rows
    that `units` puts into one group, such as the lines of an article.
    """
    groups = [[row] for row in rows] if units is None else [group for group in units(rows) if group]
    select: list[Any] = []
    report: list[Any] = []
    for group in groups:
        (select if _is_chosen(group[0] if units is None else group) else report).extend(group)
    return Halves(select, report)


def _is_chosen(row: Any) -> bool:
    text = next((row[name] for name in TEXTS if name in row), row) if isinstance(row, Mapping) else row
    return hashlib.sha256(json.dumps(text, sort_keys=True, default=str).encode()).digest()[0] % 2 == 0
