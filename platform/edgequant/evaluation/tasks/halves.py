"""Two halves of a data set that has one split: a search chooses by one, and reports the other. Light: no numpy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import Rows

TEXTS = ("passage", "context", "document")  # what several questions are about, so that they belong together


class Halves(NamedTuple):
    """Rows to choose by, and rows to report."""

    select: Rows
    report: Rows


def halves(rows: Rows) -> Halves:
    """Split rows by a hash of the text that they are about: the same row is always in the same half.

    Questions about one passage or document stay together, for whoever has chosen by one of them knows it.
    """
    chosen = [_is_chosen(row) for row in rows]
    return Halves(*([row for row, mine in zip(rows, chosen, strict=True) if mine is half] for half in (True, False)))


def _is_chosen(row: Any) -> bool:
    text = next((row[name] for name in TEXTS if name in row), row) if isinstance(row, Mapping) else row
    return hashlib.sha256(json.dumps(text, sort_keys=True, default=str).encode()).digest()[0] % 2 == 0
