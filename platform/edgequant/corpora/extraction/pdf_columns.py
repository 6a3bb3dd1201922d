"""Pages in columns that a PDF draws row by row: their text runs across the gap, and every line is two half sentences.

A gap is one where it stays: most rows of the page have text on both sides of it. Only prose is split, whose lines go on
within their column; the rows of a table belong together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

_LEAST_ROWS = 6
_LEAST_SHARE = 0.7  # of the rows that reach the gap: the others are headings across the page
_LEAST_WORDS = 3  # of a row on either side, in the median: less is a table, a form or a list's numbers
_LEAST_CONTINUED = 0.25  # of the rows on either side go on with what the row above left open
_RUN = re.compile(r"(?<=\S) {2,}(?=\S)")
_SENTENCE_END = re.compile(r"[.!?:;…।][\"')\]]*$")


def in_reading_order(plain: str, layout: str) -> str | None:
    """The page's text column by column; None where it is in one column, or drawn column by column already.

    Args:
        plain: the page in the order in which it was drawn.
        layout: the same on a grid of characters, where the places of words are kept.
    """
    rows = [row.rstrip() for row in layout.split("\n") if row.strip()]
    lines = _unmixed(rows, _squeezed(plain))
    return None if lines == rows else "\n".join(" ".join(line.split()) for line in lines)


def _unmixed(rows: list[str], drawn: str) -> list[str]:
    gap = next((gap for gap in _gaps(rows) if _is_mixed_prose(rows, gap, drawn)), None)
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


def _is_mixed_prose(rows: Sequence[str], gap: int, drawn: str) -> bool:
    reaching = [parts for row in rows if len(row) > gap and row[:gap].strip() and (parts := _parts(row, gap) or ())]
    across = sum(1 for row in rows if len(row) > gap and row[:gap].strip()) - len(reaching)
    if len(reaching) < _LEAST_ROWS or len(reaching) < _LEAST_SHARE * (len(reaching) + across):
        return False
    mixed = sum(_squeezed(left + right) in drawn for left, right in reaching)
    return mixed >= _LEAST_SHARE * len(reaching) and all(_is_prose(side) for side in zip(*reaching, strict=True))


def _is_prose(lines: Sequence[str]) -> bool:
    if median(len(line.split()) for line in lines) < _LEAST_WORDS:
        return False
    pairs = list(zip(lines, lines[1:], strict=False))
    return sum(_goes_on(before.strip(), line.strip()) for before, line in pairs) >= _LEAST_CONTINUED * len(pairs)


def _goes_on(before: str, line: str) -> bool:
    """In scripts without capitals a line goes on wherever the one before it ends no sentence."""
    first = line[:1]
    return not _SENTENCE_END.search(before) and (first.islower() or (first.isalpha() and first == first.swapcase()))


def _squeezed(text: str) -> str:
    return "".join(text.split())
