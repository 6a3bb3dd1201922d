"""First trials, spread over the space so that each hyperparameter is tried over its whole range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgequant_tune.space.hyperparameter import Space


def filling(space: Space, trials: int, seed: int) -> list[Mapping[str, Any]]:
    """A Latin hypercube (McKay et al. 1979) over the space, its points drawn apart.

    Args:
        trials: number of points; each hyperparameter's range is cut into as many, and every part has one.
    """
    from scipy.stats.qmc import LatinHypercube

    unit = LatinHypercube(len(space), optimization="random-cd", rng=seed).random(trials)
    return [{item.name: item.at(float(x)) for item, x in zip(space, row, strict=True)} for row in unit]
