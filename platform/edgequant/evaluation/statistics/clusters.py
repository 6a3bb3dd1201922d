"""What hangs together: answers about one passage or article, windows of one article. Light: no numpy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from edgequant.files import sha256_of_bytes

COLUMN = "cluster"
_OLD_COLUMN = "block"  # of windows that were scored before articles were told
_DIGITS = 12


def cluster_of(row: Mapping[str, Any]) -> Hashable:
    """The cluster that an item names; one that names none, such as a document, is one by itself."""
    named = row.get(COLUMN)
    return row.get(_OLD_COLUMN, row["id"]) if named is None else named


def named_cluster(row: Mapping[str, Any], *columns: str) -> str | None:
    """A name for what the first of these columns that a question has holds: a title as it is, a passage by its hash.

    None where it has none of them: the question stands for itself.
    """
    text = next((str(row[column]) for column in columns if row.get(column)), None)
    return text if text is None or len(text) <= 2 * _DIGITS else sha256_of_bytes(text)[:_DIGITS]
