"""From the chunks of a file to annotated rows: metadata, domain with confidence, and a MinHash for comparison."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.corpora.contamination import words_of
from edgequant.corpora.curation.metadata import UNKNOWN, describe, language_of
from edgequant.corpora.disaster.domain_classifier import Domain, classify
from edgequant.corpora.documents import DOMAINS, SPLITS
from edgequant.corpora.processed_file import ProcessedFile, ProcessedPart
from edgequant.files import sha256_of_bytes

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
_SHINGLE_WORDS = 3
_LONGEST_VALUE = 120  # characters of stated metadata that are kept


class Row(NamedTuple):
    """One chunk with everything the data set says about it, and what assembling the data set needs."""

    columns: dict[str, Any]
    document: str  # which document it is from: no document is in two splits
    stated_split: str
    minhash: str  # base64 of PERMUTATIONS 32-bit values


def annotate(files: Sequence[ProcessedFile], license: str) -> list[list[Row]]:
    """The rows of each file, in reading order.

    Args:
        files: Processed files.
        license: For files that state none.
    """
    parts = [(file, index, part) for file in files for index, part in enumerate(file.parts)]
    domains = _domains([part for _, _, part in parts])
    rows: dict[str, list[Row]] = {file.name: [] for file in files}
    for (file, index, part), found in zip(parts, domains, strict=True):
        rows[file.name].extend(_rows_of(file, index, part, found, license))
    return [rows[file.name] for file in files]


def _domains(parts: Sequence[ProcessedPart]) -> list[list[Domain]]:
    """Of every chunk of every part: as the document states it, else as the classifier, which is fitted first, finds."""
    stated = [_fields(part).get("domain") for part in parts]
    unstated = [
        [chunk.text for chunk in part.chunks] for part, name in zip(parts, stated, strict=True) if name not in DOMAINS
    ]
    found = iter(classify(unstated) if unstated else ())
    return [
        [Domain(name, 1.0)] * len(part.chunks) if name in DOMAINS else next(found)
        for part, name in zip(parts, stated, strict=True)
    ]


def _fields(part: ProcessedPart) -> dict[str, str]:
    """What a document states of itself, each value on one line."""
    return {key: " ".join(value.split())[:_LONGEST_VALUE] for key, value in part.fields.items()}


def _rows_of(
    file: ProcessedFile, index: int, part: ProcessedPart, found: Sequence[Domain], license: str
) -> Iterable[Row]:
    fields = _fields(part)
    text = "\n".join(chunk.text for chunk in part.chunks)
    described = describe(file.name, fields, text)
    language = fields.get("language") or language_of(text)
    source = file.name if len(file.parts) == 1 else f"{file.name}#{index + 1}"
    document = sha256_of_bytes(text)  # by content: a renamed copy stays in its split
    stated = fields.get("split", "") if fields.get("split") in SPLITS else ""
    for chunk, domain in zip(part.chunks, found, strict=True):
        columns = {
            "text": chunk.text,
            "domain": domain.name,
            "domain_confidence": domain.confidence,
            **described,
            "language": language if fields.get("language") else language_of(chunk.text, language),
            "source": source,
            "page": chunk.page,
            "section": chunk.section,
            "sha256": file.sha256,
            "licence": fields.get("licence") or license or UNKNOWN,
            "tokens": chunk.tokens,
            "augmented": False,
        }
        yield Row(columns, document, stated, _minhash(chunk.text))


def shingles(text: str) -> set[str]:
    """Word 3-grams, the unit of near-duplicate comparison; of a shorter text the text itself."""
    words = words_of(text)
    if len(words) < _SHINGLE_WORDS:
        return {" ".join(words)}
    return {" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(len(words) - _SHINGLE_WORDS + 1)}


@cache
def _empty_sketch() -> MinHash:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1)


def new_sketch() -> MinHash:
    """An empty MinHash of the permutations that all share, which take longer to draw than a chunk to hash."""
    return _empty_sketch().copy()


def _minhash(text: str) -> str:
    sketch = new_sketch()
    sketch.update_batch([shingle.encode() for shingle in sorted(shingles(text))])
    return base64.b64encode(sketch.hashvalues.astype("<u4").tobytes()).decode()
