"""Train, validation and test by document: stated where a document says so, else drawn by the hash of its content."""

from __future__ import annotations

from collections.abc import Mapping

from edgequant.corpora.documents import SPLITS


def assign_splits(documents: Mapping[str, str], validation_share: float, test_share: float) -> dict[str, str]:
    """The split of each document.

    A document's draw depends on its own content alone, so adding a file moves no other document. Two exceptions keep
    small collections usable: where no document came to the training split, the one with the highest draw makes it; and
    where another wanted split came out empty, the training document with the lowest draw fills it.

    Args:
        documents: Hexadecimal content hash -> stated split, '' where none is stated.
        validation_share: Share of documents, 0 to 1.
        test_share: Share of documents, 0 to 1.
    """
    assigned = {
        document: stated or _drawn(document, validation_share, test_share) for document, stated in documents.items()
    }
    free = [document for document, stated in documents.items() if not stated]
    if free and "train" not in assigned.values():
        assigned[max(free, key=_draw)] = "train"
    for split, share in (("test", test_share), ("validation", validation_share)):
        movable = [document for document in free if assigned[document] == "train"]
        if share > 0 and split not in assigned.values() and len(movable) > len(SPLITS) - 1:
            assigned[min(movable, key=_draw)] = split
    return assigned


def _drawn(document: str, validation_share: float, test_share: float) -> str:
    draw = _draw(document)
    if draw < test_share:
        return "test"
    return "validation" if draw < test_share + validation_share else "train"


def _draw(document: str) -> float:
    """Uniform in [0, 1), from the first 52 bits of the content hash."""
    return int(document[:13], 16) / 16**13
