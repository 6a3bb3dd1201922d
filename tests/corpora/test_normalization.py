"""Normalisation is idempotent and loses no letter, in any script."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgequant.corpora.text.normalization import count_words, normalize

# Sinhala, Tamil, Latin with accents, Greek, Cyrillic, Devanagari; joiners, spaces and punctuation in between.
LETTERS = st.characters(
    whitelist_categories=("Lu", "Ll", "Lo", "Mn", "Mc", "Nd"),
    max_codepoint=0x0FFF,
)
TEXTS = st.text(st.one_of(LETTERS, st.sampled_from(" \t.,;:!?-–—“”‘’…\u200d\u200c()•")), max_size=200)


@given(st.text(max_size=300), st.booleans())
def test_normalizing_twice_changes_nothing_more(text: str, lowercase: bool) -> None:
    once = normalize(text, lowercase=lowercase)
    assert normalize(once, lowercase=lowercase) == once


@given(st.lists(st.text(st.sampled_from("abcXYZකගතරමனமரக்ක්‍රéüñжω09"), min_size=1, max_size=12), max_size=20))
def test_no_letter_is_lost_added_or_moved(words: list[str]) -> None:
    def letters(text: str) -> str:
        return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c)[0] in "LMN")

    text = " ".join(words)
    assert letters(normalize(text)) == letters(text)


@given(TEXTS)
def test_no_white_space_runs_and_no_outer_space_remain(text: str) -> None:
    result = normalize(text)
    assert result == result.strip()
    assert "  " not in result and "\t" not in result


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("ﬁeld oﬃce", "field office"),
        ("“Go” — don’t wait…", '"Go" - don\'t wait...'),
        ("schÃ¶n", "schön"),
        ("evac\u00aduation\u200b", "evacuation"),
        ("ｗａｔｅｒ　１０", "water 10"),
        ("\uf0b7 item", "• item"),
    ],
)
def test_known_repairs(raw: str, expected: str) -> None:
    assert normalize(raw) == expected


def test_sinhala_conjuncts_and_tamil_marks_survive() -> None:
    for text in ("ක්‍රමය ශ්‍රී ලංකාව ප්‍රදේශයේ", "வெள்ளம் ஏற்பட்ட பகுதி", "க்ஷ"):
        assert normalize(text) == text


def test_lower_casing_is_a_switch() -> None:
    assert normalize("FEMA Região ΣΟΦΟΣ", lowercase=True) == "fema região σοφος"
    assert normalize("FEMA") == "FEMA"


def test_words_are_runs_with_a_letter_or_digit() -> None:
    assert count_words("• 5 ml — of H2O, ක්‍රමය ---") == 5
