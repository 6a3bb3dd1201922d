"""Bytes to text, by what a file is and not by what its name says."""

from __future__ import annotations

import io
import re
import zipfile

from edgequant.corpora.extraction.extracted import Extraction, ExtractionError, Part
from edgequant.corpora.text.boilerplate import Page
from edgequant.corpora.text.decoding import is_binary, marked_encoding, unified, unmarked_utf16

_IMAGES = {b"\x89PNG": "PNG image", b"\xff\xd8\xff": "JPEG image", b"GIF8": "GIF image", b"II*\x00": "TIFF image"}
_OTHERS = {
    b"7z\xbc\xaf": "7-Zip archive; unpack it",
    b"Rar!": "RAR archive; unpack it",
    b"\x28\xb5\x2f\xfd": "Zstandard archive; unpack it",
    b"{\\rtf": "RTF; save it as .docx",
    b"\x7fELF": "program",
    b"MZ": "program",
    b"\xd0\xcf\x11\xe0": "old Office file; save it as .docx",
}
_NESTED = "archive in an archive; unpack it"
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
_EXTENSIONS = {
    "pdf": "pdf",
    "html": "html",
    "htm": "html",
    "xhtml": "html",
    "md": "markdown",
    "markdown": "markdown",
    "docx": "docx",
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "zip": "zip",
    "txt": "text",
    "text": "text",
}
_HTML = re.compile(rb"^\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:!doctype html|html)\b", re.IGNORECASE | re.DOTALL)


def kind_of(content: bytes, name: str) -> str:
    """pdf, docx, zip, html, markdown, json, jsonl or text, from the content where it tells, else from the name.

    Raises:
        ExtractionError: empty, or known to be something without text.
    """
    if not content.strip(b"\x00\t\n\r "):
        raise ExtractionError("empty file" if not content else "only blanks or null bytes")
    if content[:1024].find(b"%PDF-") >= 0:
        return "pdf"
    if content.startswith(b"PK\x03\x04"):
        return _kind_of_zip(content)
    if content.startswith(_PACKED) or content[257:262] == b"ustar":
        raise ExtractionError(_NESTED)
    for magic, what in {**_IMAGES, **_OTHERS}.items():
        if content.startswith(magic):
            raise ExtractionError(f"not a document: {what}")
    if _HTML.match(content[:4096]):
        return "html"
    kind = _EXTENSIONS.get(name.rsplit(".", 1)[-1].lower() if "." in name else "", "text")
    if kind in ("pdf", "docx", "zip"):
        _text_of(content)  # binary rubbish is refused here, text goes on as text
        return "text"
    return kind


def _kind_of_zip(content: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ExtractionError(f"damaged zip or docx: {error}") from None
    if "word/document.xml" in names:
        return "docx"
    if any(name.startswith(("xl/", "ppt/")) for name in names) or "mimetype" in names:
        raise ExtractionError("not a document: spreadsheet, slides or e-book; export it as PDF or text")
    return "zip"


def extract(content: bytes, name: str, max_bytes: int) -> Extraction:
    """Extract text with its pages and sections.

    Args:
        content: The file.
        name: Its name, for the extension and for the warning when that is wrong.
        max_bytes: Limit on unpacked size.

    Raises:
        ExtractionError: no text can be had; the message says why.
    """
    from edgequant.corpora.extraction import markup, pdf, records

    kind = kind_of(content, name)
    match kind:
        case "pdf":
            extraction = pdf.extract_pdf(content)
        case "docx":
            extraction = markup.extract_docx(content, max_bytes)
        case "html":
            extraction = markup.extract_html(*decode(content))
        case "markdown":
            extraction = markup.extract_markdown(*decode(content))
        case "json" | "jsonl":
            extraction = records.extract_records(*decode(content), kind)
        case "zip":
            raise ExtractionError(_NESTED)
        case _:
            extraction = _extract_text(*decode(content))
    expected = _EXTENSIONS.get(name.rsplit(".", 1)[-1].lower()) if "." in name else None
    if expected and expected != extraction.kind:
        extraction.warnings.append(f"named .{name.rsplit('.', 1)[-1]} but is {extraction.kind}")
    return extraction


def decode(content: bytes) -> tuple[str, list[str]]:
    """Return (text with LF line ends, warnings). UTF-8, UTF-16 and UTF-32 are recognised, else it is Windows-1252.

    Raises:
        ExtractionError: the bytes are no text.
    """
    text, warning = _text_of(content)
    return text, [warning] if warning else []


def _text_of(content: bytes) -> tuple[str, str | None]:
    if encoding := marked_encoding(content):
        text = content.decode(encoding, errors="replace")
        warning = "characters that are no valid " + encoding if "\ufffd" in text else None
        return unified(text), warning or (None if encoding == "utf-8-sig" else f"decoded from {encoding.upper()}")
    try:
        return _checked_text(content.decode("utf-8")), None
    except UnicodeDecodeError:
        pass
    except ExtractionError:
        if b"\x00" not in content:
            raise
    return _guess(content)


def _guess(content: bytes) -> tuple[str, str]:
    if encoding := unmarked_utf16(content):
        whole = content[: len(content) // 2 * 2]
        return _checked_text(whole.decode(encoding, errors="replace")), f"decoded from {encoding.upper()}"
    return _checked_text(content.decode("cp1252", errors="replace")), "not UTF-8; read as Windows-1252 (latin-1)"


def _checked_text(text: str) -> str:
    if is_binary(text):
        raise ExtractionError("binary data, not text")
    return unified(text)


def _extract_text(text: str, warnings: list[str]) -> Extraction:
    """Form feeds part pages; without them there are none."""
    sheets = text.split("\f")
    numbered = len(sheets) > 1
    pages = [Page(number if numbered else 0, sheet.split("\n")) for number, sheet in enumerate(sheets, 1)]
    return Extraction("text", [Part(pages=pages)], len(sheets) if numbered else 0, warnings)
