"""Semantic chunks: whole sentences, in order, cut where the fewest section and paragraph bonds break.

The cut positions of a document are chosen together by dynamic programming over its sentences, linear in their number,
instead of filling chunks greedily: a greedy filler leaves a short rest at the end of every section.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from edgequant.corpora.text.normalization import count_words
from edgequant.corpora.text.sentences import split_sentences

CountTokens = Callable[[Sequence[str]], list[int]]

# Costs of a cut, relative to one chunk outside the token range (1 plus its relative distance).
_CUT_IN_PARAGRAPH = 0.04
_CUT_BETWEEN_PARAGRAPHS = 0.01
_SECTION_BOND = 0.2  # a chunk that runs on into the next section
_LONELY_HEADING = 3.0  # a chunk that ends with a heading, parted from its text
_UNIT_LIMIT = 2  # a unit above this many times max_tokens is not a sentence but a list, a table or a run of tokens


class Block(NamedTuple):
    """A heading, paragraph or list item of a document. `page` counts from 1; 0 where there are no pages."""

    kind: str  # heading, text or item
    text: str
    page: int = 0


class Unit(NamedTuple):
    """What is never cut: a sentence, a heading, a list item's sentence. `paragraph` numbers the blocks."""

    text: str
    tokens: int
    paragraph: int
    page: int
    section: str
    is_heading: bool
    cut: int = 0


class Chunk(NamedTuple):
    """A chunk with the page and the section that it begins on.

    `cut`: how many words more it and those behind it hold than the file, since one of the file's words was cut in it.
    """

    text: str
    tokens: int
    page: int
    section: str
    cut: int = 0


def chunk_blocks(blocks: Sequence[Block], count_tokens: CountTokens, min_tokens: int, max_tokens: int) -> list[Chunk]:
    """Cut a document into chunks of min_tokens to max_tokens tokens.

    Every word of every block is in exactly one chunk, in the order of the blocks. A sentence is never cut; text of
    more than twice max_tokens without a sentence end is cut at clause ends, else between words.

    Args:
        blocks: The document in reading order.
        count_tokens: Number of tokens of each of several texts, without special tokens.
        min_tokens: Wanted shortest chunk.
        max_tokens: Wanted longest chunk.
    """
    units = units_of(blocks, count_tokens, max_tokens)
    spans = _best_cuts(units, min_tokens, max_tokens)
    texts = [_join(units[start:end]) for start, end in spans]
    counts = count_tokens(texts)
    return [
        _chunk(text, tokens, units[start:end]) for text, tokens, (start, end) in zip(texts, counts, spans, strict=True)
    ]


def _chunk(text: str, tokens: int, units: Sequence[Unit]) -> Chunk:
    return Chunk(text, tokens, units[0].page, _section_of(units), sum(unit.cut for unit in units))


def units_of(blocks: Sequence[Block], count_tokens: CountTokens, max_tokens: int) -> list[Unit]:
    """The units of a document with their token counts."""
    pieces: list[tuple[str, int, int, str, bool]] = []
    section = ""
    for number, block in enumerate(blocks):
        is_heading = block.kind == "heading"
        section = block.text if is_heading else section
        for sentence in [block.text] if is_heading else split_sentences(block.text):
            pieces.append((sentence, number, block.page, section, is_heading))
    counts = _counts_in_context([(text, number) for text, number, *_ in pieces], count_tokens)
    units: list[Unit] = []
    for (text, number, page, section, is_heading), tokens in zip(pieces, counts, strict=True):
        if tokens > _UNIT_LIMIT * max_tokens:
            parts = split_overlong(text, count_tokens, max_tokens)
            cuts = [_words_gained(text, max_tokens), *[0] * (len(parts) - 1)]
            units.extend(Unit(*part, number, page, section, False, cut) for part, cut in zip(parts, cuts, strict=True))
        else:
            units.append(Unit(text, tokens, number, page, section, is_heading))
    return units


def _counts_in_context(pieces: Sequence[tuple[str, int]], count_tokens: CountTokens) -> list[int]:
    """Tokens of each text where it will stand: after a space or line end, which may merge with the mark before it."""
    contexts = ["a\n"][: len(pieces)]
    for (before, paragraph), (_, following) in pairwise(pieces):
        mark = before[-1] if before[-1] in ".!?:;,)\"'" else "a"
        contexts.append(mark + (" " if paragraph == following else "\n"))
    counts = count_tokens([context + text for context, (text, _) in zip(contexts, pieces, strict=True)])
    return [max(count - 1, 1) for count in counts]  # the mark itself is a token of the text before


def split_overlong(text: str, count_tokens: CountTokens, max_tokens: int) -> list[tuple[str, int]]:
    """Cut text without sentence ends into parts of at most about max_tokens / 3, at clause ends where there are any.

    A single word above that size (a data blob) is cut between characters, the only place where a word is cut.
    """
    limit = _part_limit(max_tokens)
    words = [part for word in text.split() for part in _cut_word(word, limit)]
    counts = count_tokens([" " + word for word in words])
    parts: list[tuple[list[str], int]] = [([], 0)]
    for word, tokens in zip(words, counts, strict=True):
        held, size = parts[-1]
        clause_ended = bool(held) and held[-1][-1] in ";:,.•|" and size >= limit // 2
        if held and (size + tokens > limit or clause_ended):
            parts.append(([word], tokens))
        else:
            parts[-1] = ([*held, word], size + tokens)
    return [(" ".join(held), size) for held, size in parts]


def _part_limit(max_tokens: int) -> int:
    return max(max_tokens // 3, 1)


def _words_gained(text: str, max_tokens: int) -> int:
    """How many words more the pieces of words that `split_overlong` cuts are than those words."""
    cut = [(word, _cut_word(word, _part_limit(max_tokens))) for word in text.split()]
    return sum(sum(map(count_words, pieces)) - count_words(word) for word, pieces in cut)


def _cut_word(word: str, limit: int) -> list[str]:
    """Words are cut only where they are longer than prose has them: above 4 characters per token of the limit."""
    length = limit * 4
    return [word] if len(word) <= length else re.findall(f".{{1,{length}}}", word, re.DOTALL)


def _best_cuts(units: Sequence[Unit], min_tokens: int, max_tokens: int) -> list[tuple[int, int]]:
    """Spans (start, end) of the cheapest division; best[e] is the cost of the cheapest division of units[:e]."""
    best, start_of = [0.0], [0]
    for end in range(1, len(units) + 1):
        cheapest, chosen = float("inf"), end - 1
        tokens, bonds = 0, 0.0
        for start in range(end - 1, -1, -1):
            tokens += units[start].tokens
            if tokens > _UNIT_LIMIT * max_tokens and start < end - 1:
                break
            cost = best[start] + bonds + _length_cost(tokens, min_tokens, max_tokens)
            if cost < cheapest:
                cheapest, chosen = cost, start
            bonds += _SECTION_BOND * _opens_section(units, start)
        best.append(cheapest + _cut_cost(units, end))
        start_of.append(chosen)
    return _spans(start_of)


def _opens_section(units: Sequence[Unit], position: int) -> bool:
    return units[position].is_heading and not (position > 0 and units[position - 1].is_heading)


def _spans(start_of: Sequence[int]) -> list[tuple[int, int]]:
    spans, end = [], len(start_of) - 1
    while end > 0:
        spans.append((start_of[end], end))
        end = start_of[end]
    return spans[::-1]


def _length_cost(tokens: int, min_tokens: int, max_tokens: int) -> float:
    if tokens < min_tokens:
        return 1 + (min_tokens - tokens) / min_tokens
    return 1 + 2 * (tokens - max_tokens) / max_tokens if tokens > max_tokens else 0.0


def _cut_cost(units: Sequence[Unit], end: int) -> float:
    if end == len(units):
        return 0.0
    before, after = units[end - 1], units[end]
    if before.is_heading:
        return _LONELY_HEADING
    if after.is_heading:
        return 0.0
    return _CUT_IN_PARAGRAPH if before.paragraph == after.paragraph else _CUT_BETWEEN_PARAGRAPHS


def _join(units: Sequence[Unit]) -> str:
    text = units[0].text
    for before, unit in pairwise(units):
        text += (" " if before.paragraph == unit.paragraph else "\n") + unit.text
    return text


def _section_of(units: Sequence[Unit]) -> str:
    """The section most of the chunk's tokens lie in; on a tie the first."""
    sizes: dict[str, int] = {}
    for unit in units:
        sizes[unit.section] = sizes.get(unit.section, 0) + unit.tokens
    return max(sizes, key=lambda section: sizes[section])
