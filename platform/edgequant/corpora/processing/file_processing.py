"""One file to chunks: the function that workers, Ray and tests call. Pure: same file, same settings, same result."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath

from edgequant.corpora.extraction.extract import extract
from edgequant.corpora.extraction.extracted import ExtractionError, Part
from edgequant.corpora.processed_file import ProcessedFile, ProcessedPart
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import printable
from edgequant.corpora.text.boilerplate import Page, Removed, remove_boilerplate
from edgequant.corpora.text.chunking import Block, CountTokens, chunk_blocks
from edgequant.corpora.text.normalization import count_words, normalize
from edgequant.corpora.text.paragraphs import blocks_of_pages
from edgequant.files import sha256_of_bytes

_MEMBER_LIMIT = 10_000


def process_file(
    path: str, name: str, member: str | None, settings: CorpusSettings, count: CountTokens
) -> ProcessedFile:
    """Read, extract, clean and chunk one file, or one member of a zip archive.

    A file that gives no text comes back with the reason in `refused`.
    """
    try:
        content = _read(path, member, int(settings.file_megabytes * 1e6))
        return process_content(content, name, settings, count)
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


def list_members(path: str, name: str, settings: CorpusSettings) -> tuple[list[tuple[str, str]], list[ProcessedFile]]:
    """Members of a zip archive as (member, name) and those refused. Nothing is ever unpacked to disk.

    A file that is not an archive gives ([], []).
    """
    limit = int(settings.file_megabytes * 1e6)
    members: list[tuple[str, str]] = []
    refused: list[ProcessedFile] = []
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    for info in infos[:_MEMBER_LIMIT]:
        shown = f"{name}!/{printable(info.filename)}"
        reason = _why_refused(info, limit)
        if reason:
            refused.append(ProcessedFile(shown, refused=reason))
        elif not info.is_dir() and not PurePosixPath(info.filename).name.startswith("."):
            members.append((info.filename, shown))
    if len(infos) > _MEMBER_LIMIT:
        refused.append(
            ProcessedFile(name, refused=f"{len(infos) - _MEMBER_LIMIT:,} members beyond the first {_MEMBER_LIMIT:,}")
        )
    return members, refused


def _why_refused(info: zipfile.ZipInfo, limit: int) -> str:
    parts = PurePosixPath(info.filename.replace("\\", "/")).parts
    if ".." in parts or info.filename.startswith(("/", "\\")) or (parts and ":" in parts[0]):
        return "path leaves the archive; not opened"
    if info.flag_bits & 1:
        return "encrypted archive member; needs its password"
    if info.file_size > limit:
        return f"unpacks to {info.file_size / 1e6:,.0f} MB, more than file_megabytes {limit / 1e6:g} (zip bomb?)"
    return ""


def is_archive(path: str) -> bool:
    """A zip archive of documents, as against a DOCX, spreadsheet or e-book, which are zip files too."""
    try:
        with open(path, "rb") as handle:
            if handle.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False
    return "[Content_Types].xml" not in names and "mimetype" not in names


def _read(path: str, member: str | None, limit: int) -> bytes:
    size = os.path.getsize(path)
    if size > limit:
        raise ExtractionError(
            f"{size / 1e6:,.0f} MB, more than file_megabytes {limit / 1e6:g}; split it or raise the limit"
        )
    if member is None:
        with open(path, "rb") as handle:
            return handle.read()
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as handle:
            content = handle.read(limit + 1)  # what the archive says about sizes need not be true
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        KeyError,
        EOFError,
        io.UnsupportedOperation,
    ) as error:
        raise ExtractionError(f"damaged archive member: {error}") from None
    if len(content) > limit:
        raise ExtractionError(f"unpacks to more than file_megabytes {limit / 1e6:g} (zip bomb?)")
    return content
