"""What a file gives: its parts, pages and warnings, or why it gives nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgequant.corpora.text.boilerplate import Page, Removed
from edgequant.corpora.text.chunking import Block


class ExtractionError(Exception):
    """A file that gives no text; the message says what it is and what would help."""


@dataclass
class Part:
    """One document of a file: most files hold one, JSON and JSONL one per record.

    Line-oriented sources fill `pages`, structured ones `blocks`. `fields` holds stated metadata.
    """

    pages: list[Page] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    removed: list[Removed] = field(default_factory=list)


@dataclass
class Extraction:
    """All parts of a file, how many pages it has (0: has none), and what went wrong on the way."""

    kind: str
    parts: list[Part]
    pages: int = 0
    warnings: list[str] = field(default_factory=list)
