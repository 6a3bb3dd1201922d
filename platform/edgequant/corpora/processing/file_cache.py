"""Results per file, kept under everything that decides them: content, name, settings, tokenizer, code."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from edgequant.corpora.curation.annotation import Row
from edgequant.corpora.processed_file import ProcessedFile
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import SourceFile
from edgequant.files import cache_dir, sha256_of, sha256_of_bytes, source_digest, write_atomically

# What changes the data set but not the chunks of a file, or how fast they come.
_NOT_PER_FILE = ("dedup_threshold", "validation_share", "test_share", "augment_below", "engine", "workers")
_DECIDING_PACKAGES = (
    "beautifulsoup4",
    "datasketch",
    "ftfy",
    "pypdf",
    "py3langid",
    "python-docx",
    "scikit-learn",
    "tokenizers",
)
Result = tuple[ProcessedFile, list[Row]]


def file_key(file: SourceFile, tokenizer: Path, settings: CorpusSettings) -> str:
    """Hash of everything that decides what a file gives."""
    per_file = {key: value for key, value in asdict(settings).items() if key not in _NOT_PER_FILE}
    parts = [file.name, file.refused, _content_hash(file), sha256_of(tokenizer), _code_hash(), per_file]
    return sha256_of_bytes(json.dumps(parts, sort_keys=True))


def _content_hash(file: SourceFile) -> str:
    """Of an unreadable or refused file nothing; of one too large to process its size, which is quick."""
    if file.refused:
        return ""
    try:
        size = os.path.getsize(file.path)
        return sha256_of(file.path) if size < 1e9 else f"{size} bytes"
    except OSError as error:
        return f"errno {error.errno}"


@cache
def _code_hash() -> str:
    """Of the package's code, the libraries it rests on, and the bundled texts that the classifier is fitted on."""
    versions = [metadata.version(package) for package in _DECIDING_PACKAGES]
    code = source_digest("edgequant.corpora", "disaster/*.txt", "disaster/*.yaml", "disaster/documents/*")
    return sha256_of_bytes("".join([*versions, code]))


def read_results(key: str) -> list[Result] | None:
    """What a file gave before (an archive gives several results), or None."""
    try:
        stored = json.loads(gzip.decompress(_path(key).read_bytes()))
        return [(ProcessedFile.from_json(file), [Row(*row) for row in rows]) for file, rows in stored]
    except (OSError, ValueError, TypeError, KeyError, EOFError):
        return None  # absent, or written by another version: made again


def write_results(key: str, results: Sequence[Result]) -> None:
    """Keep what a file gave."""
    stored: list[Any] = [(file.to_json(), rows) for file, rows in results]
    write_atomically(_path(key), gzip.compress(json.dumps(stored).encode(), compresslevel=3, mtime=0))


def _path(key: str) -> Path:
    return cache_dir() / "corpus" / "files" / f"{key}.json.gz"
