"""One file to chunks: the function that workers, Ray and tests call. Pure: same file, same settings, same result."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from edgequant.corpora.extraction.extract import extract
from edgequant.corpora.extraction.extracted import ExtractionError, Part
from edgequant.corpora.processed_file import ProcessedFile, ProcessedPart
from edgequant.corpora.processing.archives.listing import Place
from edgequant.corpora.processing.archives.open_archive import Archive
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.text.boilerplate import Page, Removed, remove_boilerplate
from edgequant.corpora.text.chunking import Block, CountTokens, chunk_blocks
from edgequant.corpora.text.normalization import count_words, normalize
from edgequant.corpora.text.paragraphs import blocks_of_pages
from edgequant.files import sha256_of_bytes


def process_file(path: str, name: str, settings: CorpusSettings, count: CountTokens) -> ProcessedFile:
    """Read, extract, clean and chunk one file.

    A file that gives no text comes back with the reason in `refused`.
    """
    return _processed(lambda limit: _read(path, limit), name, settings, count)


def process_member(
    archive: Archive, place: Place, name: str, settings: CorpusSettings, count: CountTokens
) -> ProcessedFile:
    """As `process_file`, for a member of an archive."""

    def read(limit: int) -> bytes:
        content = archive.read(place, limit)
        if len(content) > limit:
            raise ExtractionError(f"unpacks to more than file_megabytes {limit / 1e6:g} (bomb?)")
        return content

    return _processed(read, name, settings, count)


def _processed(read: Callable[[int], bytes], name: str, settings: CorpusSettings, count: CountTokens) -> ProcessedFile:
    try:
        return process_content(read(int(settings.file_megabytes * 1e6)), name, settings, count)
    except ExtractionError as error:
        return ProcessedFile(name, refused=str(error))
    except OSError as error:
        return ProcessedFile(name, refused=f"not readable: {error.strerror or error}")


def process_content(content: bytes, name: str, settings: CorpusSettings, count: CountTokens) -> ProcessedFile:
    """As `process_file`, for bytes in memory.

    Raises:
        ExtractionError: the bytes give no text.
    """
    extraction = extract(content, name, int(settings.file_megabytes * 1e6))
    result = ProcessedFile(name, sha256_of_bytes(content), extraction.kind, pages=extraction.pages)
    result.warnings = extraction.warnings
    for part in extraction.parts:
        _process_part(part, settings, count, result)
    if result.words == 0:
        raise ExtractionError("no words in it")
    overlong = sum(chunk.tokens > 2 * settings.max_tokens for part in result.parts for chunk in part.chunks)
    if overlong:
        result.warnings.append(f"{overlong} chunks far above max_tokens")
    return result


def _process_part(part: Part, settings: CorpusSettings, count: CountTokens, result: ProcessedFile) -> None:
    def clean(text: str) -> str:
        return normalize(text, lowercase=settings.lowercase)

    pages = [Page(page.number, [clean(line) for line in page.lines]) for page in part.pages]
    blocks = [Block(block.kind, clean(block.text).replace("\n", " "), block.page) for block in part.blocks]
    removed = [Removed(clean(item.text), item.reason, item.page) for item in part.removed]
    texts = [line for page in pages for line in page.lines] + [block.text for block in blocks]
    result.words += sum(map(count_words, texts)) + sum(count_words(item.text) for item in removed)
    if pages:
        pages, boilerplate = remove_boilerplate(pages)
        removed += boilerplate
        blocks, joined = blocks_of_pages(pages)
        result.joined += joined
    blocks, empty = _without_empty(blocks)
    chunks = chunk_blocks(blocks, count, settings.min_tokens, settings.max_tokens)
    removed = [item for item in removed + empty if item.text]
    result.parts.append(ProcessedPart(part.fields, chunks, removed))


def _without_empty(blocks: Sequence[Block]) -> tuple[list[Block], list[Removed]]:
    """Blocks without a letter or digit (rules, stray bullets) hold no word."""
    kept = [block for block in blocks if count_words(block.text)]
    return kept, [Removed(block.text, "no words", block.page) for block in blocks if not count_words(block.text)]


def _read(path: str, limit: int) -> bytes:
    size = os.path.getsize(path)
    if size > limit:
        raise ExtractionError(
            f"{size / 1e6:,.0f} MB, more than file_megabytes {limit / 1e6:g}; split it or raise the limit"
        )
    with open(path, "rb") as handle:
        return handle.read()
