"""How wide a text is at most, whichever sans-serif font shows it: nobody measures it before the page is opened."""

from __future__ import annotations

import unicodedata

NARROW, WIDE = frozenset("iljI.,:;'|!()[]{}ftr -"), frozenset("mwMW@%—…")


def text_width(text: str, size: float) -> float:
    """Upper estimate in the unit of `size`, the height of the font: by the widest of the usual system fonts."""
    return size * sum(map(_width, text))


def shortened(text: str, size: float, most: float) -> str:
    """The text, its middle left out where it is wider than `most`: names tend to differ at their ends."""
    if text_width(text, size) <= most:
        return text
    kept = len(text)
    while kept > 2:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if text_width(shown, size) <= most:
            return shown
    return "…"


def _width(character: str) -> float:
    """Of a character, in heights of the font."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.4 if ord(character) > 0x1F000 else 1.05
    if character in WIDE:
        return 1.0
    if character in NARROW:
        return 0.42
    return 0.8 if character.isupper() else 0.66
