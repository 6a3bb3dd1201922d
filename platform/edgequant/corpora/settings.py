"""How documents become a data set. Light: imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgequant.errors import UserError
from edgequant.settings_checks import check_types

MOST_WORKERS = 512


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Everything that decides what the data set holds, and the limits that a file is processed under.

    Raises:
        UserError: a value that cannot work, before any file is opened.
    """

    min_tokens: int = 100
    """Shortest wanted chunk, in tokens of the chosen tokenizer; the end of a short document may stay below."""

    max_tokens: int = 150
    """Longest wanted chunk; only a sentence that is longer by itself goes above, it is not cut."""

    lowercase: bool = False
    """Lower-case all text, as the methodology lists. Off: cased models lose by it (docs/corpora.md has the figures)."""

    dedup_threshold: float = 0.8
    """Jaccard similarity of word 3-grams from which the later of two chunks is removed; 1 removes exact copies only."""

    validation_share: float = 0.1
    """Share of documents, drawn by content hash, for validation. Documents that state a split keep it."""

    test_share: float = 0.1
    """Share of documents for test."""

    augment_below: float = 0.0
    """Augment training chunks of domains with fewer than this share of the largest domain's chunks; 0 augments none."""

    license: str = "not stated"
    """License filed for files that state none themselves."""

    engine: Literal["local", "ray"] = "local"
    """local: worker processes on this machine. ray: the same per-file function on Ray Data, on any cluster."""

    workers: int = 2
    """Worker processes of the local engine, one file each at a time."""

    file_timeout_s: float = 120.0
    """Time limit per file; a file that takes longer is reported and left out."""

    file_memory_mb: int = 300
    """Memory limit per file, beyond what a worker needs for itself (about 150 MB)."""

    file_megabytes: float = 50.0
    """Largest file, and largest unpacked member of an archive, in 10^6 bytes."""

    archive_timeout_s: float = 1800.0
    """Time limit per archive, of all its members together; those that are left then are reported and left out."""

    archive_members: int = 100_000
    """Most members of an archive; what lies behind them is reported and left out."""

    archive_megabytes: float = 1_000.0
    """Most that the members of an archive unpack to together, in 10^6 bytes."""

    archive_ratio: float = 200.0
    """Most that what is above 10 MB may unpack to, in multiples of its packed size; documents have 3 to 20."""

    def __post_init__(self) -> None:
        check_types(self, "settings")
        if not 1 <= self.min_tokens < self.max_tokens:
            raise UserError(
                f"settings.min_tokens must be at least 1 and below settings.max_tokens, got {self.min_tokens} and "
                f"{self.max_tokens}; use such as 100 and 150"
            )
        for name in ("dedup_threshold", "validation_share", "test_share", "augment_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"settings.{name} must be a share from 0 to 1, got {getattr(self, name)}")
        if self.validation_share + self.test_share >= 1:
            raise UserError(
                f"settings.validation_share + test_share must be below 1, got {self.validation_share} + "
                f"{self.test_share}, which leaves nothing to train on; use such as 0.1 and 0.1"
            )
        limits = ("file_timeout_s", "file_memory_mb", "file_megabytes", "archive_timeout_s", "archive_members")
        for name in ("workers", *limits, "archive_megabytes", "archive_ratio"):
            if getattr(self, name) <= 0:
                raise UserError(f"settings.{name} must be above 0, got {getattr(self, name)}")
        if self.workers > MOST_WORKERS:
            raise UserError(f"settings.workers must be at most {MOST_WORKERS} processes, got {self.workers}")
