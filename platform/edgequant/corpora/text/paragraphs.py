"""From the lines of pages to headings, paragraphs and list items, with words broken at line ends put together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from edgequant.corpora.text.boilerplate import Page
from edgequant.corpora.text.chunking import Block

_BULLET = re.compile(r"^(?:•|[-*>o]\s(?=\S)|\(?(?:\d{1,2}|[a-zA-Z])[.)]\s)")
_SENTENCE_END = re.compile(r"[.!?:;…।][\"')\]]*$")
_BROKEN_WORD = re.compile(r"([^\W\d_]+)-$")
_SHORT_LINE = 0.65  # of the page's widest line: a sentence that ends there ends its paragraph
_HEADING_WORDS = 14


class Line(NamedTuple):
    """A line with what deciding on paragraphs needs."""

    text: str
    page: int
    after_blank: bool
    is_short: bool


def blocks_of_pages(pages: Sequence[Page]) -> tuple[list[Block], int]:
    """Return (blocks in reading order, number of words that were put together from two halves)."""
    lines = _lines_of(pages)
    vocabulary = {word.lower().strip(".,;:()\"'") for line in lines for word in line.text.split()}
    blocks: list[Block] = []
    joined = 0
    for previous, line, following in zip([None, *lines], lines, [*lines[1:], None], strict=False):
        if previous is None or _begins_block(previous, line, following, blocks[-1]):
            kind = "item" if _BULLET.match(line.text) else "heading" if _is_heading(line, following) else "text"
            blocks.append(Block(kind, line.text, line.page))
        else:
            text, was_broken = _continue(blocks[-1].text, line.text, vocabulary)
            blocks[-1] = blocks[-1]._replace(text=text)
            joined += was_broken
    return blocks, joined


def _lines_of(pages: Sequence[Page]) -> list[Line]:
    lines: list[Line] = []
    for page in pages:
        widest = max(map(len, page.lines), default=0)
        blank = False
        for text in page.lines:
            if text:
                lines.append(Line(text, page.number, blank, len(text) < _SHORT_LINE * widest))
            blank = not text
    return lines


def _begins_block(previous: Line, line: Line, following: Line | None, block: Block) -> bool:
    if _BULLET.match(line.text):
        return True
    if _continues_sentence(previous.text, line.text):
        return False
    if block.kind == "heading":
        goes_on = line.page == previous.page and not line.after_blank and _is_heading(line, following)
        return not goes_on or len(f"{block.text} {line.text}".split()) > _HEADING_WORDS
    if line.after_blank and line.page == previous.page:
        return True
    if _SENTENCE_END.search(previous.text) and previous.is_short:
        return True
    return _is_heading(line, following) and (previous.is_short or bool(_SENTENCE_END.search(previous.text)))


def _continues_sentence(before: str, text: str) -> bool:
    """Across line and page ends alike: an open sentence goes on in lower case."""
    return text[0].islower() and not _SENTENCE_END.search(before)


def _is_heading(line: Line, following: Line | None) -> bool:
    """A short line in capitals or title case, without a full stop, before something that begins anew."""
    words = [word for word in line.text.split() if any(map(str.isalpha, word))]
    if not words or len(words) > _HEADING_WORDS or line.text[-1] in ".,;:?!-" or not line.is_short:
        return False
    if following is None or following.text[0].islower():
        return False
    letters = [word for word in words if len(word.strip("()\"'.,:")) > 3] or words
    return all(word.lstrip("(\"'•")[:1].isupper() for word in letters) and words[0].lstrip("(\"'")[:1].isupper()


def _continue(text: str, line: str, vocabulary: set[str]) -> tuple[str, bool]:
    """Append a line. A word broken by a hyphen becomes whole; a compound that the document also writes stays one."""
    # The last word alone: a search through all of a paragraph that grows line by line takes the square of its length.
    match = _BROKEN_WORD.search(text.rpartition(" ")[2]) if text.endswith("-") else None
    if not match or not line[0].islower():
        return f"{text} {line}", False
    second = line.split()[0].lower().strip(".,;:()\"'")
    compound = f"{match.group(1).lower()}-{second}"
    whole = compound.replace("-", "", 1)
    keeps_hyphen = compound in vocabulary and whole not in vocabulary
    return (text if keeps_hyphen else text[:-1]) + line, True
