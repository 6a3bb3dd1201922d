"""Drawing a smaller set of questions, the same ones for every model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from edgequant.errors import UserError

Text = TypeVar("Text")


def draw(count: int, limit: int | None, seed: int) -> list[int]:
    """Indices of `limit` items out of `count` without replacement, in their own order; all of them for None.

    The draw depends on nothing but the three numbers, so every model meets the same questions, and a larger limit
    contains the smaller one's items.
    """
    if limit is None or limit >= count:
        return list(range(count))
    shuffled = list(range(count))
    random.Random(seed).shuffle(shuffled)
    return sorted(shuffled[:limit])


def draw_questions(rows: Sequence[dict], name: str, limit: int | None, seed: int) -> list[dict]:
    """The questions to ask, each with an `id` that stays its own whatever the limit (its own, or `name-<index>`).

    Raises:
        UserError: there are none.
    """
    if not rows:
        raise UserError(f"{name}: the data set is empty; give at least one question or leave the task out")
    return [{"id": f"{name}-{index}", **rows[index]} for index in draw(len(rows), limit, seed)]


def draw_evenly(pairs: Sequence[tuple[str, Text]], limit: int | None, seed: int) -> list[tuple[str, Text]]:
    """`limit` of the (domain, text) pairs, so that no domain has two more than another that still has some."""
    met: Counter[str] = Counter()
    rank = {}
    for index in random.Random(seed).sample(range(len(pairs)), len(pairs)):
        met[pairs[index][0]] += 1
        rank[index] = met[pairs[index][0]]
    chosen = sorted(rank, key=lambda index: rank[index])[:limit]  # stable: within a rank, the drawn order
    return [pairs[index] for index in sorted(chosen)]
