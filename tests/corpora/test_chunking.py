"""Chunks hold every word once, in order, cut between sentences."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgequant.corpora.text.chunking import Block, chunk_blocks, split_overlong
from edgequant.corpora.text.sentences import split_sentences


def count_words(texts: Sequence[str]) -> list[int]:
    """One token per word: easy to check by hand. The mark before a line end counts as one, as in byte-level BPE."""
    return [len(text.split()) for text in texts]


WORD = st.text(st.sampled_from("abcdefgකතநம"), min_size=1, max_size=7)
SENTENCE = st.lists(WORD, min_size=1, max_size=40).map(lambda words: " ".join(words).capitalize() + ".")
BLOCK = st.tuples(st.sampled_from(["heading", "text", "item"]), st.lists(SENTENCE, min_size=1, max_size=6)).map(
    lambda drawn: Block(drawn[0], " ".join(drawn[1]))
)


@settings(max_examples=60, deadline=None)
@given(st.lists(BLOCK, max_size=25))
def test_every_word_is_in_one_chunk_in_order(blocks: list[Block]) -> None:
    chunks = chunk_blocks(blocks, count_words, 100, 150)
    assert " ".join(chunk.text for chunk in chunks).split() == " ".join(block.text for block in blocks).split()


@settings(max_examples=60, deadline=None)
@given(st.lists(SENTENCE, min_size=1, max_size=60))
def test_no_sentence_is_cut(sentences: list[str]) -> None:
    blocks = [Block("text", " ".join(sentences))]
    known = set(split_sentences(blocks[0].text))
    for chunk in chunk_blocks(blocks, count_words, 100, 150):
        assert set(split_sentences(chunk.text)) <= known


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(10, 40), min_size=30, max_size=80))
def test_long_documents_of_short_sentences_fall_wholly_into_the_range(lengths: list[int]) -> None:
    text = " ".join("Word" + " word" * (length - 1) + "." for length in lengths)
    for chunk in chunk_blocks([Block("text", text)], count_words, 100, 150):
        assert 100 <= chunk.tokens <= 150


def test_a_heading_stays_with_its_text_and_opens_a_chunk_where_it_can() -> None:
    body = " ".join("The crew checked the boat and the rope before noon." for _ in range(11))
    blocks = [Block("heading", "First"), Block("text", body), Block("heading", "Second"), Block("text", body)]
    chunks = chunk_blocks(blocks, count_words, 100, 150)
    assert [chunk.text.split("\n")[0] for chunk in chunks] == ["First", "Second"]
    assert [chunk.section for chunk in chunks] == ["First", "Second"]


def test_a_greedy_filler_would_leave_a_short_rest_and_this_one_does_not() -> None:
    text = " ".join("Word" + " word" * 29 + "." for _ in range(8))  # 240 words: greedily 150 + 90
    assert [chunk.tokens for chunk in chunk_blocks([Block("text", text)], count_words, 100, 150)] == [120, 120]


def test_page_and_section_are_those_where_the_chunk_begins() -> None:
    sentence = "Word" + " word" * 59 + "."
    blocks = [Block("text", f"{sentence} {sentence}", 3), Block("text", f"{sentence} {sentence}", 4)]
    assert [chunk.page for chunk in chunk_blocks(blocks, count_words, 100, 150)] == [3, 4]


def test_text_without_sentence_ends_is_cut_at_clauses_and_keeps_its_words() -> None:
    text = "; ".join("item with some words" for _ in range(200))
    parts = split_overlong(text, count_words, 150)
    assert " ".join(part for part, _ in parts).split() == text.split()
    assert all(part.endswith(";") for part, _ in parts[:-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Silva came at 6.30 p.m. on Monday. He left.", ["Dr. Silva came at 6.30 p.m. on Monday.", "He left."]),
        ("Use approx. 5 ml. Then wait.", ["Use approx. 5 ml.", "Then wait."]),
        ("The U.S. Army helped. It rained!", ["The U.S. Army helped.", "It rained!"]),
        ("1. Close the valve. 2. Call the crew.", ["1. Close the valve.", "2. Call the crew."]),
        ('He said "Go." They went.', ['He said "Go."', "They went."]),
        ("ගඟ උතුරා ගියේය. බෝට්ටු දෙකක් පැමිණියේය.", ["ගඟ උතුරා ගියේය.", "බෝට්ටු දෙකක් පැමිණියේය."]),
        ("நீர் உயர்ந்தது. படகுகள் வந்தன.", ["நீர் உயர்ந்தது.", "படகுகள் வந்தன."]),
        ("It reached 3.5 metres. by then it fell", ["It reached 3.5 metres. by then it fell"]),
    ],
)
def test_sentence_boundaries(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(st.text(max_size=200))
def test_sentences_joined_by_spaces_hold_all_words(text: str) -> None:
    assert " ".join(split_sentences(" ".join(text.split()))).split() == text.split()
