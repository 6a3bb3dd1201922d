"""What is on a page but is no text of the document: running headers and footers, page numbers, contents, form fields.

Works on pages of normalised lines. Nothing vanishes: each removed line comes back with its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Page(NamedTuple):
    """A page and its lines, top to bottom; blank lines are ''."""

    number: int
    lines: list[str]


class Removed(NamedTuple):
    """Text that is in no chunk, and why."""

    text: str
    reason: str
    page: int


_EDGE_LINES = 4  # running heads stand within so many non-blank lines of the page's top or bottom
_REPEATS_AT_EDGE = 3
_REPEATS_ON_FORMS = 6
_PAGE_NUMBER = re.compile(
    r"^[\W_]*(?:page\s*)?(?:[A-Z]{1,3}-)?(?:\d{1,4}|[ivxlc]{1,7})(?:\s*(?:of|/)\s*\d{1,4})?[\W_]*$", re.IGNORECASE
)
_PAGE_NUMBER_AT_END = re.compile(
    r"^(?:\d{1,4}|[ivxlc]{1,7})\s+|\s+(?:[a-z]{1,3}-)?(?:\d{1,4}|[ivxlc]{1,7})$|\bpage\s+\d{1,4}(?:\s+of\s+\d{1,4})?"
)
_LEADERS = re.compile(r"\.{4,}|(?:\s\.){4,}|…{2,}")
_CONTENTS_HEADING = re.compile(r"^(?:table of contents|contents|list of (?:figures|tables)|index)$", re.IGNORECASE)
_ENDS_WITH_PAGE = re.compile(r"\S\s+(?:[A-Z]{1,3}-)?\d{1,4}$")
_BLANKS = re.compile(r"_{3,}|(?:[☐☑☒□]\s*\S+.*){2,}")
_ONLY_LABELS = re.compile(r"^(?:(?:\d{1,2}[a-z]?\.\s*)?[A-Z•][\w/()#&' -]{0,40}:\s*){2,}$")
_FORM_WORDS = re.compile(
    r"\b(?:name|date|time|signature|title|number|prepared|approved|from|to|phone|no|id)\b", re.IGNORECASE
)


def remove_boilerplate(pages: Sequence[Page]) -> tuple[list[Page], list[Removed]]:
    """Return the pages without boilerplate, and what was removed, in page order."""
    running = _running_heads(pages)
    repeated = _repeated_form_lines(pages)
    kept: list[Page] = []
    removed: list[Removed] = []
    for page in pages:
        contents = _contents_lines(page.lines)
        reasons = _edge_reasons(page.lines, running)
        for index, line in enumerate(page.lines):
            if index not in reasons and line:
                reason = "table of contents" if index in contents else _form_reason(line, repeated)
                if reason:
                    reasons[index] = reason
        removed.extend(Removed(page.lines[index], reasons[index], page.number) for index in sorted(reasons))
        kept.append(Page(page.number, [line for index, line in enumerate(page.lines) if index not in reasons]))
    return kept, removed


def _letters(line: str) -> str:
    """Case and spacing vary in lines that are otherwise the same, and page numbers at their ends."""
    line = _PAGE_NUMBER_AT_END.sub("", line.casefold())
    return "".join(character for character in line if character.isalnum())


def _edge_indices(lines: Sequence[str]) -> tuple[list[int], list[int]]:
    filled = [index for index, line in enumerate(lines) if line]
    return filled[:_EDGE_LINES], filled[::-1][:_EDGE_LINES]


def _running_heads(pages: Sequence[Page]) -> set[str]:
    """Lines that stand at the edge of three pages in a row (left and right pages alternate) or of many pages.

    A line that happens to end several paragraphs, such as "resources.", is not one: it must be on many pages.
    """
    places: dict[str, list[int]] = {}
    sentences: set[str] = set()
    for position, page in enumerate(pages):
        top, bottom = _edge_indices(page.lines)
        for index in {*top, *bottom}:
            letters = _letters(page.lines[index])
            if letters and position not in places.setdefault(letters, [])[-1:]:
                places[letters].append(position)
            if page.lines[index][0].islower() or page.lines[index].endswith((".", ":", ";")):
                sentences.add(letters)
    many = max(_REPEATS_AT_EDGE, len(pages) // 5)
    return {
        letters
        for letters, positions in places.items()
        if len(positions) >= many or (letters not in sentences and _has_run(positions))
    }


def _has_run(positions: Sequence[int]) -> bool:
    """Three occurrences with at most one page between each and the next."""
    return any(
        third - first <= 4 and second - first <= 2 and third - second <= 2
        for first, second, third in zip(positions, positions[1:], positions[2:], strict=False)
    )


def _edge_reasons(lines: Sequence[str], running: set[str]) -> dict[int, str]:
    """From each edge inwards, until a line that is neither a running head nor a page number."""
    reasons: dict[int, str] = {}
    top, bottom = _edge_indices(lines)
    for indices, where in ((top, "running header"), (bottom, "running footer")):
        for index in indices:
            if _PAGE_NUMBER.match(lines[index]):
                reasons.setdefault(index, "page number")
            elif _letters(lines[index]) in running:
                reasons.setdefault(index, where)
            else:
                break
    return reasons


def _contents_lines(lines: Sequence[str]) -> set[int]:
    """Lines with dot leaders; on a page where these are many, also entries whose leaders were lost or wrapped."""
    filled = [index for index, line in enumerate(lines) if line]
    leaders = {index for index in filled if _LEADERS.search(lines[index])}
    headed = any(_CONTENTS_HEADING.match(lines[index]) for index in filled[: _EDGE_LINES + 2])
    if len(leaders) >= 0.3 * len(filled) > 0 or (headed and _share_ending_with_page(lines, filled) > 0.5):
        return set(filled)
    return leaders


def _share_ending_with_page(lines: Sequence[str], filled: Sequence[int]) -> float:
    return sum(bool(_ENDS_WITH_PAGE.search(lines[index])) for index in filled) / max(len(filled), 1)


def _repeated_form_lines(pages: Iterable[Page]) -> set[str]:
    """Short lines that are no sentence and stand on many pages: field labels of a form printed again and again."""
    counts: Counter[str] = Counter()
    for page in pages:
        counts.update({_letters(line) for line in page.lines if _is_label_like(line)})
    return {letters for letters, count in counts.items() if letters and count >= _REPEATS_ON_FORMS}


def _is_label_like(line: str) -> bool:
    return 0 < len(line.split()) <= 8 and not line.endswith((".", "!", "?", ";", ","))


def _form_reason(line: str, repeated: set[str]) -> str | None:
    if _BLANKS.search(line) or (_ONLY_LABELS.match(line) and _FORM_WORDS.search(line)):
        return "form field"
    if _is_label_like(line) and _letters(line) in repeated:
        return "repeated form label"
    return None
