"""Sentence boundaries, on the safe side: a boundary that is missed makes a longer unit, a false one cuts a sentence."""

from __future__ import annotations

import re

# A full stop after these ends no sentence (or may not).
_ABBREVIATION = re.compile(
    r"(?:a\.k\.a|al|approx|art|bldg|capt|cf|ch|co|col|corp|dept|dr|e\.g|ed|eds|eq|est|etc|ext|fig|figs|gen|"
    r"gov|govt|hon|i\.e|inc|jr|lt|ltd|max|maj|messrs|min|mr|mrs|ms|mt|no|nos|op|p|para|pp|pres|prof|pt|rd|"
    r"ref|rep|rev|sec|sen|sgt|sr|st|tel|temp|u\.k|u\.n|u\.s|viz|vol|vs)",
    re.IGNORECASE,
)
# Closing quotes and brackets belong to the sentence that they close.
_BOUNDARY = re.compile(r"""[.!?…।።。！？]+["')\]]*\s+(?=\S)""")
_LAST_WORD = re.compile(r"([^\s(\[\"']+)\.+[\"')\]]*\s*$")
_LIST_NUMBER = re.compile(r"^\W*(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})$")


def split_sentences(paragraph: str) -> list[str]:
    """Cut one paragraph (no line ends) into sentences; joined by single spaces they give the paragraph back.

    Latin text needs a capital, digit, quote or bracket after the full stop; scripts without case need none.
    """
    sentences, start = [], 0
    for match in _BOUNDARY.finditer(paragraph):
        if _ends_sentence(paragraph[start : match.end()], paragraph[match.end()]):
            sentences.append(paragraph[start : match.end()].rstrip())
            start = match.end()
    return [*sentences, paragraph[start:]] if paragraph[start:] else sentences


def _ends_sentence(before: str, following: str) -> bool:
    if following.islower():
        return False
    match = _LAST_WORD.search(before)
    if not match:  # ! ? or an ellipsis character
        return True
    word = match.group(1)
    if _ABBREVIATION.fullmatch(word) or _LIST_NUMBER.match(before[: match.end(1)].strip()):
        return False
    is_initial = len(word) == 1 and word.isalpha() and word.isupper()
    return not is_initial
