"""What came of a file: its documents as chunks of text, and what was left out; travels as JSON between processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgequant.corpora.text.boilerplate import Removed
from edgequant.corpora.text.chunking import Chunk


@dataclass
class ProcessedPart:
    """One document of a file: its stated metadata, its opening text, its chunks, and what was left out."""

    fields: dict[str, str]
    chunks: list[Chunk]
    removed: list[Removed]


@dataclass
class ProcessedFile:
    """What came of a file. `words` = words in chunks + words removed + `joined` (halves of hyphenated words) - the
    chunks' `cut`."""

    name: str
    sha256: str = ""
    kind: str = ""
    refused: str = ""
    pages: int = 0
    words: int = 0
    joined: int = 0
    parts: list[ProcessedPart] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> ProcessedFile:
        parts = [
            ProcessedPart(
                part["fields"],
                [Chunk(*chunk) for chunk in part["chunks"]],
                [Removed(*item) for item in part["removed"]],
            )
            for part in value["parts"]
        ]
        return ProcessedFile(**{**value, "parts": parts})
