"""PDF to lines, page by page, with pypdf."""

from __future__ import annotations

import io
import logging
from typing import Any

from edgequant.corpora.extraction.extracted import Extraction, ExtractionError, Part
from edgequant.corpora.extraction.pdf_columns import find_columns
from edgequant.corpora.text.boilerplate import Page

_PAGES_LOOKED_AT, _THEN_EACH = 8, 6

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings are counted per file instead


def extract_pdf(content: bytes) -> Extraction:
    """Extract the text of every page; a page that cannot be read is a warning, not the end of the file.

    Raises:
        ExtractionError: damaged beyond reading, locked with a password, or without any text (scanned images).
    """
    reader = _open(content)
    pages: list[Page] = []
    broken, without_text = [], []
    for number in range(1, len(reader.pages) + 1):
        try:
            text = reader.pages[number - 1].extract_text() or ""
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # pypdf raises whatever a malformed object trips over
            broken.append(f"page {number} unreadable: {type(error).__name__}: {str(error)[:80]}")
            continue
        if not text.strip():
            without_text.append(number)
        pages.append(Page(number, text.split("\n")))
    if len(without_text) + len(broken) == len(reader.pages):
        raise ExtractionError(_why_no_text(len(reader.pages), broken))
    warnings = broken[:3] + ([f"{len(broken) - 3} more pages unreadable"] if len(broken) > 3 else [])
    if without_text:
        warnings.append(f"{len(without_text)} pages without text (blank or image)")
    columns = _columns_of(reader, pages)
    split = {number: text.split("\n") for number, text in columns.items() if text}
    pages = [Page(page.number, split.get(page.number, page.lines)) for page in pages]
    if split:
        warnings.append(f"{_counted(len(split))} in columns that were drawn row by row, read column by column")
    if len(columns) > len(split):
        unclear = _counted(len(columns) - len(split))
        warnings.append(f"{unclear} in columns or a table, drawn and read row by row; look whether sentences are mixed")
    return Extraction("pdf", [Part(pages=pages, fields=_stated_fields(reader))], len(reader.pages), warnings)


def _counted(pages: int) -> str:
    return f"{pages} page{'s' if pages > 1 else ''}"


def _columns_of(reader: Any, pages: list[Page]) -> dict[int, str]:
    """Pages in columns that were drawn row by row, by number.

    Looking at a page takes twice as long as reading it: of a long document some are looked at first.
    """
    tried = pages[:_PAGES_LOOKED_AT] + pages[_PAGES_LOOKED_AT::_THEN_EACH]
    rest = [page for page in pages if page not in tried]
    found: dict[int, str] = {}
    for some in (tried, rest):
        for page in some:
            text = find_columns("\n".join(page.lines), _layout_of(reader.pages[page.number - 1]))
            if text is not None:
                found[page.number] = text
        if not found:
            break
    return found


def _layout_of(page: Any) -> str:
    """The page on a grid of characters; empty where that cannot be had."""
    try:
        return page.extract_text(extraction_mode="layout", layout_mode_space_vertically=False) or ""
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:  # as above; the text itself is there
        return ""


def _open(content: bytes) -> Any:
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ExtractionError("encrypted PDF: needs its password; save an unlocked copy")
        len(reader.pages)
    except (ExtractionError, MemoryError):
        raise
    except Exception as error:
        raise ExtractionError(f"damaged PDF: {type(error).__name__}: {str(error)[:100]}") from None
    if len(reader.pages) == 0:
        raise ExtractionError("damaged PDF: no pages (truncated?)")
    return reader


def _why_no_text(pages: int, broken: list[str]) -> str:
    if broken:
        return f"damaged PDF: none of {pages} pages readable ({broken[0]})"
    return f"no text on any of {pages} pages: scanned images; run OCR (for example ocrmypdf) first"


def _stated_fields(reader: Any) -> dict[str, str]:
    try:
        information = reader.metadata or {}
        fields = {"title": information.get("/Title"), "author": information.get("/Author")}
        return {key: str(value)[:300] for key, value in fields.items() if value}
    except Exception:  # metadata is a courtesy; a damaged dictionary must not cost the text
        return {}
