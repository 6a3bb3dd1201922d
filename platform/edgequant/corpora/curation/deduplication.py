"""Near-duplicate chunks: MinHash and locality-sensitive hashing find candidates, exact Jaccard similarity decides."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from edgequant.corpora.curation.annotation import PERMUTATIONS, Row, new_sketch, shingles

_KEEP_FIRST = {"test": 0, "validation": 1, "train": 2}


def find_near_duplicates(rows: Sequence[Row], splits: Sequence[str], threshold: float) -> dict[int, int]:
    """Which rows repeat another: index of the later one -> index of the one that is kept.

    Rows are taken in the order test, validation, train, and as given within a split: what is near to evaluation text
    leaves the training text, and the evaluation splits do not change with it.

    Args:
        rows: Annotated chunks.
        splits: The split of each row.
        threshold: Jaccard similarity of word 3-grams, 0 to 1, from which two chunks count as the same.
    """
    import numpy as np
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=min(threshold, 0.99), num_perm=PERMUTATIONS)
    duplicates: dict[int, int] = {}
    for position in sorted(range(len(rows)), key=lambda row: (_KEEP_FIRST[splits[row]], row)):
        values = np.frombuffer(base64.b64decode(rows[position].minhash), dtype="<u4").astype(np.uint64)
        sketch = new_sketch()
        sketch.hashvalues = values
        own = shingles(rows[position].columns["text"])
        near = [other for other in sorted(index.query(sketch)) if _jaccard(own, rows[other]) >= threshold]
        if near:
            duplicates[position] = near[0]
        else:
            index.insert(position, sketch)
    return duplicates


def _jaccard(own: set[str], other: Row) -> float:
    theirs = shingles(other.columns["text"])
    return len(own & theirs) / max(len(own | theirs), 1)
