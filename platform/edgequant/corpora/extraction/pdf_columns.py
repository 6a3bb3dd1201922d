"""Pages in columns that a PDF draws row by row: their text runs across the gap, and every line is two half sentences.

A gap is one where it stays: most rows of the page have text on both sides of it. Only prose is split, whose lines go on
within their column; the rows of a table belong together, and where it is not clear which it is, that is said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

_LEAST_ROWS = 5
_LEAST_SHARE = 0.7  # of the rows that reach the gap: the others are headings across the page
_LEAST_WORDS = 3  # of a row on either side, in the median: less is a table, a form or a list's numbers
_LEAST_CONTINUED = 0.25  # of the rows on either side go on with what the row above left open
_RUN = re.compile(r"(?<=\S) {2,}(?=\S)")
_SENTENCE_END = re.compile(r"[.!?:;…।][\"')\]]*$")


def find_columns(plain: str, layout: str) -> str | None:
    """The page's text column by column; None where it is in one column, or drawn column by column already.

    Empty where it may be in columns or a table.

    Args:
        plain: the page in the order in which it was drawn.
        layout: the same on a grid of characters, where the places of words are kept.
    """
    rows, drawn = [row.rstrip() for row in layout.split("\n") if row.strip()], _squeezed(plain)
    lines = _unmixed(rows, drawn)
    if lines != rows:
        return "\n".join(" ".join(line.split()) for line in lines)
    return "" if any(_mixed_sides(rows, gap, drawn) for gap in _gaps(rows)) else None


def _unmixed(rows: list[str], drawn: str) -> list[str]:
    mixed = ((gap, _mixed_sides(rows, gap, drawn)) for gap in _gaps(rows))
    gap = next((gap for gap, sides in mixed if sides and all(map(_goes_on, sides))), None)
    if gap is None:
        return rows
    lines: list[str] = []
    left: list[str] = []
    right: list[str] = []
    for row in [*rows, None]:
        if row is not None and (parts := _parts(row, gap)):
            left += [parts[0]] if parts[0].strip() else []
            right += [parts[1]] if parts[1].strip() else []
            continue
        lines += [*_unmixed(left, drawn), *_unmixed(right, drawn)]
        lines += [row] if row is not None else []
        left, right = [], []
    return lines


def _gaps(rows: Sequence[str]) -> Iterator[int]:
    """Columns of the grid that are blank between words in enough rows, those of most rows first."""
    counts: Counter[int] = Counter()
    for row in rows:
        for run in _RUN.finditer(row):
            counts.update(range(run.start(), run.end()))
    for count in sorted({count for count in counts.values() if count >= _LEAST_ROWS}, reverse=True):
        columns = [column for column, other in counts.items() if other == count]
        yield sorted(columns)[len(columns) // 2]


def _parts(row: str, gap: int) -> tuple[str, str] | None:
    """What stands left and right of the gap; None where the row goes across it."""
    if len(row) <= gap or not row[:gap].strip():
        return row[:gap], row[gap:]
    run = next((run for run in _RUN.finditer(row) if run.start() <= gap < run.end()), None)
    return (row[: run.start()], row[run.end() :]) if run else None


def _mixed_sides(rows: Sequence[str], gap: int, drawn: str) -> list[tuple[str, ...]]:
    """What stands left and right of the gap where it parts most rows that reach it, each drawn in one go; else none."""
    reaching = [row for row in rows if len(row) > gap and row[:gap].strip()]
    parted = [parts for row in reaching if (parts := _parts(row, gap))]
    mixed = [parts for parts in parted if _squeezed("".join(parts)) in drawn]
    if len(mixed) < max(_LEAST_ROWS, _LEAST_SHARE * len(reaching)):
        return []
    sides = list(zip(*parted, strict=True))
    wordy = all(median(len(line.split()) for line in side) >= _LEAST_WORDS for side in sides)
    return sides if wordy else []


def _goes_on(lines: Sequence[str]) -> bool:
    """Whether this is prose: in scripts without capitals a line goes on wherever the one before it ends no sentence."""
    pairs = [(before.strip(), line.strip()[:1]) for before, line in pairwise(lines)]
    going_on = [
        not _SENTENCE_END.search(before) and (first.islower() or (first.isalpha() and first == first.swapcase()))
        for before, first in pairs
    ]
    return sum(going_on) >= _LEAST_CONTINUED * len(pairs)


def _squeezed(text: str) -> str:
    return "".join(text.split())
