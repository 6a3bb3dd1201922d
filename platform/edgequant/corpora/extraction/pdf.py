"""PDF to lines, page by page, with pypdf."""

from __future__ import annotations

import io
import logging
from typing import Any

from edgequant.corpora.extraction.extracted import Extraction, ExtractionError, Part
from edgequant.corpora.extraction.pdf_columns import in_reading_order
from edgequant.corpora.text.boilerplate import Page

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings are counted per file instead


def extract_pdf(content: bytes) -> Extraction:
    """Extract the text of every page; a page that cannot be read is a warning, not the end of the file.

    Raises:
        ExtractionError: damaged beyond reading, locked with a password, or without any text (scanned images).
    """
    reader = _open(content)
    pages, broken, without_text, unmixed = [], [], [], 0
    for number in range(1, len(reader.pages) + 1):
        try:
            page = reader.pages[number - 1]
            text = page.extract_text() or ""
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # pypdf raises whatever a malformed object trips over
            broken.append(f"page {number} unreadable: {type(error).__name__}: {str(error)[:80]}")
            continue
        if not text.strip():
            without_text.append(number)
        elif split := in_reading_order(text, _layout_of(page)):
            text, unmixed = split, unmixed + 1
        pages.append(Page(number, text.split("\n")))
    if len(without_text) + len(broken) == len(reader.pages):
        raise ExtractionError(_why_no_text(len(reader.pages), broken))
    warnings = broken[:3] + ([f"{len(broken) - 3} more pages unreadable"] if len(broken) > 3 else [])
    if without_text:
        warnings.append(f"{len(without_text)} pages without text (blank or image)")
    if unmixed:
        warnings.append(f"{unmixed} pages in columns that were drawn row by row, read column by column")
    return Extraction("pdf", [Part(pages=pages, fields=_stated_fields(reader))], len(reader.pages), warnings)


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
