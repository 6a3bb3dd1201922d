"""Perplexity by domain of the text: which part of it a model lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from edgequant.reporting.columns import Row, described_metrics, is_bound, is_finite

PART = re.compile(r"(.+/perplexity)_(.+)")


class Breakdown(NamedTuple):
    """A metric and what it is broken down into: keys of rows by the name of the domain."""

    metric: str
    parts: dict[str, str]


def breakdowns(rows: Sequence[Row]) -> list[Breakdown]:
    """The perplexities of which two domains or more were measured."""
    found: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for row in rows for key in row if is_finite(row[key])):
        matched = None if is_bound(key) or key in described_metrics() else PART.fullmatch(key)
        if matched:
            found.setdefault(matched[1], {})[_name(matched[2])] = key
    return [Breakdown(metric, dict(sorted(parts.items()))) for metric, parts in found.items() if len(parts) > 1]


def _name(part: str) -> str:
    return part.replace("_", " ").capitalize()
