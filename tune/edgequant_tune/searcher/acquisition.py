"""Of many configurations, the one that is worth a trial: expected improvement among those that keep the constraints."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import log_ndtr, ndtr

from edgequant_tune.searcher.gaussian_process import GaussianProcess

Array = Any
DRAWS = 64


def log_expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Logarithm of the expected improvement below `best` (Jones et al. 1998, equation 15): so small ones compare."""
    z = (best - mean) / deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    improvement = np.maximum(z * ndtr(z) + density, 0.0)
    far = -0.5 * z**2 - np.log(np.sqrt(2 * np.pi)) - 2 * np.log(np.maximum(np.abs(z), 1.0))  # z to minus infinity
    return np.log(deviation) + np.where(z > -25, np.log(np.maximum(improvement, 1e-300)), far)


def log_feasibility(models: list[GaussianProcess], points: Array) -> Array:
    """Logarithm of the probability that every constraint's excess is at most 0."""
    total = np.zeros(len(points))
    for model in models:
        mean, deviation = model.predict(points)
        total += log_ndtr(-mean / deviation)
    return total


def log_hypervolume_improvement(
    models: list[GaussianProcess], points: Array, front: Array, worst: Array, rng: Any
) -> Array:
    """Logarithm of the area that a trial is expected to add to what the front of two objectives dominates.

    Expected hypervolume improvement (Emmerich et al. 2006), by `DRAWS` draws that all points share.

    Args:
        front: trials by objectives, those that none dominates.
        worst: up to which values the area counts.
    """
    front = front[np.argsort(front[:, 0])]
    left, right = np.concatenate([[-np.inf], front[:, 0]]), np.concatenate([front[:, 0], worst[:1]])
    top = np.concatenate([worst[1:], front[:, 1]])  # of the strip between two neighbours, what is not dominated yet
    means, draws = _drawn(models, points, rng)
    wide = np.maximum(right - np.maximum(left, draws[..., :1]), 0.0)
    high = np.maximum(top - draws[..., 1:], 0.0)
    room = np.maximum(worst - front.min(0), 1e-12)
    added = (wide * high).sum(-1).mean(1) / room.prod()
    # where no draw adds anything, the one whose mean is nearest
    away = np.clip(((means - front.min(0)) / room).max(-1), 0.0, 10.0)
    return np.log(np.maximum(added, 1e-12)) - 1e-3 * away


def log_scalarized_improvement(models: list[GaussianProcess], points: Array, front: Array, rng: Any) -> Array:
    """Logarithm of the expected improvement of several objectives in a direction drawn for this trial.

    The objectives, from 0 to 1 over the front, are weighed by an augmented Chebyshev norm (ParEGO, Knowles 2006): its
    minima for all weights are the front, so trials that run at the same time look for different parts of it.

    Args:
        front: trials by objectives, those that none dominates.
    """
    low, high = front.min(0), front.max(0)
    weights = rng.dirichlet(np.ones(len(models)))

    def scalarized(costs: Array) -> Array:
        scaled = weights * (costs - low) / np.where(high > low, high - low, 1.0)
        return scaled.max(-1) + 0.05 * scaled.sum(-1)

    means, draws = _drawn(models, points, rng)
    improvement = np.maximum(scalarized(front).min() - scalarized(draws), 0.0).mean(1)
    # where no draw improves, the one whose mean is nearest
    return np.log(np.maximum(improvement, 1e-12)) - 1e-3 * scalarized(means)


def _drawn(models: list[GaussianProcess], points: Array, rng: Any) -> tuple[Array, Array]:
    """Means [points, objectives] and values [points, draws, objectives], the same chances for all points."""
    parts = [model.predict(points) for model in models]
    means, deviations = np.stack([part[0] for part in parts], -1), np.stack([part[1] for part in parts], -1)
    return means, means[:, None] + deviations[:, None] * rng.standard_normal((DRAWS, len(models)))
