"""Documents to a data set: list files, process each (or take it from the cache), split, compare, augment, write."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgequant.corpora.curation.annotation import Row, annotate
from edgequant.corpora.disaster.corpus import DOCUMENTS
from edgequant.corpora.documents import SPLITS
from edgequant.corpora.processed_file import ProcessedFile
from edgequant.corpora.processing import file_cache
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import SourceFile, list_files
from edgequant.corpora.text.normalization import count_words
from edgequant.corpora.text.tokens import TokenCounter
from edgequant.errors import UserError
from edgequant.files import sha256_of_bytes

Progress = Callable[[int, int], None]


@dataclass
class Corpus:
    """A data set in memory: rows by split (the data set's columns), what was removed, and one line per file."""

    rows: dict[str, list[dict[str, Any]]]
    removed: list[dict[str, Any]]
    files: list[dict[str, Any]]
    processed: int = 0

    @property
    def digest(self) -> str:
        """Hash of all rows in order."""
        return sha256_of_bytes(json.dumps(self.rows, sort_keys=True))[:32]


def source_fingerprint(files: Sequence[SourceFile], tokenizer: Path, settings: CorpusSettings) -> tuple[str, list[str]]:
    """(fingerprint of the whole input, cache key of each file). Equal fingerprints give equal data sets."""
    keys = [file_cache.file_key(file, tokenizer, settings) for file in files]
    whole = [settings.dedup_threshold, settings.validation_share, settings.test_share, settings.augment_below]
    return sha256_of_bytes(json.dumps([keys, whole])), keys


def files_of(source: str | None) -> list[SourceFile]:
    """The files of a source folder, or the bundled documents."""
    return list_files(Path(source).expanduser() if source else DOCUMENTS)


def build(
    files: Sequence[SourceFile], keys: Sequence[str], tokenizer: Path, settings: CorpusSettings, progress: Progress
) -> Corpus:
    """Build the data set; files seen before come from the cache.

    Args:
        files: What to process, in order.
        keys: The cache key of each file.
        tokenizer: A tokenizer.json.
        settings: Chunk sizes, limits, shares.
        progress: Called with (files done, files in all).

    Raises:
        UserError: no file gave any text.
    """
    results = {index: file_cache.read_results(key) for index, key in enumerate(keys)}
    missing = [index for index, result in results.items() if result is None]
    fresh: dict[int, list[ProcessedFile]] = {index: [] for index in missing}

    begun = len(files) - len(missing)

    def take(position: int, result: ProcessedFile) -> None:
        nonlocal begun
        begun += not fresh[missing[position]]
        fresh[missing[position]].append(result)
        progress(begun, len(files))

    _process([files[index] for index in missing], tokenizer, settings, take)
    _annotate_and_keep(fresh, keys, settings)
    for index, processed in fresh.items():
        results[index] = file_cache.read_results(keys[index]) if processed else []
    ordered = [result for index in range(len(files)) for result in results[index] or []]
    if not any(rows for _, rows in ordered):
        reasons = "; ".join(f"{file.name}: {file.refused}" for file, _ in ordered[:3])
        raise UserError(
            f"no text in any of {len(files)} files ({reasons}); give PDF, HTML, Markdown, text, DOCX or JSON"
        )
    corpus = assemble(ordered, TokenCounter(tokenizer), settings)
    corpus.processed = len(missing)
    return corpus


def _process(
    files: Sequence[SourceFile], tokenizer: Path, settings: CorpusSettings, take: Callable[[int, ProcessedFile], None]
) -> None:
    readable = [(position, file) for position, file in enumerate(files) if not file.refused]
    for position, file in enumerate(files):
        if file.refused:
            take(position, ProcessedFile(file.name, refused=file.refused))

    def take_readable(position: int, result: ProcessedFile) -> None:
        take(readable[position][0], result)

    if not readable:
        return
    if settings.engine == "ray":
        from edgequant.corpora.processing.ray_engine import process_on_ray as process
    else:
        from edgequant.corpora.processing.sandbox import process_in_workers as process
    process([file for _, file in readable], tokenizer, settings, take_readable)


def _annotate_and_keep(fresh: dict[int, list[ProcessedFile]], keys: Sequence[str], settings: CorpusSettings) -> None:
    processed = [file for files in fresh.values() for file in files]
    rows = iter(annotate(processed, settings.license))
    for index, files in fresh.items():
        file_cache.write_results(keys[index], [(file, next(rows)) for file in files])


def assemble(results: Sequence[file_cache.Result], count: TokenCounter, settings: CorpusSettings) -> Corpus:
    """Splits by document, near-duplicates out, scarce domains augmented; a line per file."""
    from edgequant.corpora.curation.augmentation import augment
    from edgequant.corpora.curation.deduplication import find_near_duplicates
    from edgequant.corpora.curation.splits import assign_splits

    rows = [row for _, found in results for row in found]
    shares = settings.validation_share, settings.test_share
    drawn = assign_splits({row.document: row.stated_split for row in rows}, *shares)
    duplicates = find_near_duplicates(rows, [drawn[row.document] for row in rows], settings.dedup_threshold)
    rest = [row for index, row in enumerate(rows) if index not in duplicates]
    # once more: a document of which nothing is left fills no split, and held-out copies may have emptied the training
    assigned = assign_splits({row.document: row.stated_split for row in rest}, *shares)
    kept: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for row in rest:
        kept[assigned[row.document]].append(row.columns)
    if settings.augment_below > 0:
        kept["train"] += augment(kept["train"], settings.augment_below, count, settings.max_tokens)
    removed = [_removed_line(file.name, item) for file, _ in results for part in file.parts for item in part.removed]
    removed += [_duplicate_line(rows[index], rows[other]) for index, other in sorted(duplicates.items())]
    dropped = Counter(rows[index].columns["source"].split("#")[0] for index in duplicates)
    return Corpus(kept, removed, [_file_line(file, found, dropped) for file, found in results])


def _removed_line(name: str, item: Any) -> dict[str, Any]:
    return {
        "source": name,
        "page": item.page,
        "reason": item.reason,
        "words": count_words(item.text),
        "text": item.text,
    }


def _duplicate_line(row: Row, kept: Row) -> dict[str, Any]:
    text, other = row.columns["text"], kept.columns
    reason = f"near-duplicate of {other['source']} page {other['page']}, section {other['section']!r}"
    return {
        "source": row.columns["source"],
        "page": row.columns["page"],
        "reason": reason,
        "words": count_words(text),
        "text": text,
    }


def _file_line(file: ProcessedFile, rows: Sequence[Row], dropped: Counter[str]) -> dict[str, Any]:
    """Words in the file = words in chunks + words removed + halves of hyphenated words that were joined - words gained
    by cutting those that are too long for a chunk."""
    in_chunks = sum(count_words(row.columns["text"]) for row in rows)
    removed = sum(count_words(item.text) for part in file.parts for item in part.removed)
    cut = sum(chunk.cut for part in file.parts for chunk in part.chunks)
    unaccounted = file.words - in_chunks - removed - file.joined + cut
    warnings = list(file.warnings)
    warnings += [f"words too long for a chunk were cut, {cut:,} times"] if cut else []
    warnings += [f"{unaccounted} words unaccounted for"] if unaccounted else []
    return {
        "file": file.name,
        "pages": file.pages or None,
        "words": file.words,
        "chunks": len(rows) - dropped[file.name.split("#")[0]],
        "removed words": removed,
        "joined": file.joined,
        "duplicates": dropped[file.name.split("#")[0]],
        "warnings": f"left out: {file.refused}" if file.refused else "; ".join(warnings),
    }
