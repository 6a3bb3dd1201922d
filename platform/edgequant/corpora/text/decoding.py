"""Bytes to text without guessing: UTF-8, or UTF-16 and UTF-32 where the bytes say so; no byte order mark, one line end.

An editor that saves a file with CRLF or a byte order mark changes what a model is trained on and scored on, and what
its perplexity is divided by. So every text is brought to one form where it is read.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import NamedTuple

from edgequant.errors import UserError

BYTE_ORDER_MARKS = (  # UTF-32's before UTF-16's, which they begin with
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PACKED = {
    b"\x1f\x8b": "gzip archive, unpack it",
    b"PK\x03\x04": "zip archive, unpack it",
    b"BZh": "bzip2 archive, unpack it",
    b"\xfd7zXZ": "xz archive, unpack it",
    b"\x28\xb5\x2f\xfd": "zstd archive, unpack it",
    b"PAR1": "Parquet file",
    b"ARROW1": "Arrow file",
}
_MARK = "\ufeff"
_SAMPLE = 4096  # bytes
_ZEROS_OF_UTF16 = 0.3  # of every second byte: western text has nearly all
_MOST_CONTROLS = 0.02


class DecodedText(NamedTuple):
    """A text with `\\n` as its only line end and without byte order marks, and what that changed, in words."""

    text: str
    changes: tuple[str, ...] = ()


def decode_text(content: bytes) -> DecodedText:
    """Bytes to text in the one form.

    Raises:
        ValueError: neither UTF-8 nor marked or evident UTF-16 or UTF-32 (a UnicodeDecodeError), or no text at all.
    """
    if packed := next((what for magic, what in _PACKED.items() if content.startswith(magic)), None):
        raise ValueError(f"binary data ({packed})")
    encoding = marked_encoding(content) or unmarked_utf16(content) or "utf-8"
    text = content.decode(encoding)
    if is_binary(text):
        raise ValueError("binary data")
    changes = [] if encoding.startswith("utf-8") else [f"decoded from {encoding.upper()}"]
    return DecodedText(unified(text), (*changes, *_changes_of(text, marked=encoding == "utf-8-sig")))


def read_text(path: str | Path, what: str = "") -> DecodedText:
    """A text file in the one form.

    Args:
        what: the option or kind of file that names it in messages: `dataset`.

    Raises:
        UserError: no regular file, not readable, or not such text; names the file and what to do.
    """
    named = f"{what} {str(path)!r}".strip() if what else str(path)
    try:
        if not Path(path).is_file():  # a pipe would wait for ever
            raise UserError(f"{named} is not a regular file; give a text file")
        return decode_text(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{named} must be UTF-8 text, got bytes that are none (0x{error.object[error.start]:02x} at {error.start})"
            "; convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
        ) from None
    except ValueError as error:
        raise UserError(f"{named} must be UTF-8 text, got {error}") from None


def unified(text: str) -> str:
    """The text with `\\n` for every CRLF and lone CR, and without byte order marks at the beginning of lines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    return text.replace(f"\n{_MARK}", "\n").removeprefix(_MARK) if _MARK in text else text


def marked_encoding(content: bytes) -> str | None:
    """The encoding that the bytes' byte order mark names, or None."""
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS if content.startswith(mark)), None)


def unmarked_utf16(content: bytes) -> str | None:
    """utf-16-le or utf-16-be where the zeros of western text say so, else None."""
    sample = content[:_SAMPLE]
    most = _ZEROS_OF_UTF16 * max(len(sample) // 2, 1)
    odd, even = sample[1::2].count(0), sample[::2].count(0)
    return "utf-16-le" if odd > max(most, even) else "utf-16-be" if even > max(most, odd) else None


def is_binary(text: str) -> bool:
    """Whether so many control characters stand in it that it is no text."""
    sample = text[:20_000]
    controls = sum(1 for character in sample if ord(character) < 32 and character not in "\t\n\r\f\x0b\x1b")
    return controls > _MOST_CONTROLS * len(sample)


def _changes_of(text: str, *, marked: bool) -> tuple[str, ...]:
    ends = "CRLF" if "\r\n" in text else "CR" if "\r" in text else ""
    changes = ["byte order mark left out"] if marked or text.startswith(_MARK) else []
    return (*changes, f"{ends} line ends read as LF") if ends else tuple(changes)
