"""Text normalisation: ftfy, Unicode NFKC, one form of every punctuation mark, single spaces.

Applied line by line. Idempotent, and no letter is lost: Sinhala and Tamil keep their joiners (U+200C, U+200D).
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

_PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛ʼ′´`", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–−﹣－", "-"),
        **dict.fromkeys("—―", " - "),
        **dict.fromkeys("●▪■◦‣∙·□▫►▶➢✓✔➤", "•"),
        **dict.fromkeys("\u00ad\u200b\u2060\ufeff\ufffc\ufffd", ""),
        "⁄": "/",
        # Symbol fonts in PDFs put their bullets and arrows into the private use area.
        **dict.fromkeys((chr(code) for code in range(0xF020, 0xF100)), "•"),
    }
)
_SPACES = re.compile(r"[^\S\n]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_MAX_PASSES = 8


def normalize(text: str, *, lowercase: bool = False) -> str:
    """Normalise one line or paragraph; line ends stay where they are.

    Repairing one level of mis-decoding can reveal another, hence the passes until nothing changes.
    """
    for _ in range(_MAX_PASSES):
        previous, text = text, _one_pass(text)
        if text == previous:
            break
    return _lowered(text) if lowercase else text


def _one_pass(text: str) -> str:
    text = text if text.isascii() else unicodedata.normalize("NFKC", _repaired(text).translate(_PUNCTUATION))
    return _SPACES.sub(" ", _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))).strip()


def _repaired(text: str) -> str:
    import ftfy

    return ftfy.fix_text(text, _ftfy_settings())


@cache
def _ftfy_settings() -> Any:
    """It must not unescape "&lt;" twice over, and quotes are handled above together with their relatives."""
    import ftfy

    return ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, normalization="NFKC", explain=False)


def _lowered(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.lower()).lower())


def count_words(text: str) -> int:
    """Runs of non-space characters that hold a letter or a digit."""
    return sum(any(map(str.isalnum, word)) for word in text.split())
