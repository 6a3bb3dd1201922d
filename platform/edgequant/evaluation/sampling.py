"""Drawing a smaller set of questions, the same ones for every model."""

from __future__ import annotations

import random


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
