"""What the trials so far say of configurations that were not tried, and the one that is worth trying most."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from edgequant_tune.searcher.acquisition import (
    log_expected_improvement,
    log_feasibility,
    log_hypervolume_improvement,
    log_scalarized_improvement,
)
from edgequant_tune.searcher.gaussian_process import GaussianProcess
from edgequant_tune.searcher.observation import Observation, points
from edgequant_tune.space.hyperparameter import Space, canonical

Array = Any
Key = Callable[[Mapping[str, Any]], Any]
DRAWN, NEAR, ROUNDS, KEPT = 800, 300, 3, 8  # candidates over the space; then each time near the best ones
FEW = 3  # trials that ended for each that runs, below which expected improvement would only explore
FORETOLD = 20.0  # taken off the logarithm of what a trial is worth; what breaks a constraint for sure loses more
BEYOND = 0.1  # of the range of the costs, beyond the worst: up to there dominated area counts
MOST_MODELLED = 200  # trials, of more the best and newest: a Gaussian process takes time with their cube


class SearchModel:
    """Gaussian processes of objectives and constraints.

    Args:
        observations: of which at least one has finished.
        seed: of the candidates.
    """

    def __init__(self, space: Space, observations: Sequence[Observation], seed: int) -> None:
        self.space, self.rng = space, np.random.default_rng(seed)
        self.choices = np.array([item.kind == "choice" for item in space])
        known = points(observations)
        chosen = _most_telling(known)
        self.at = self._encoded([observations[index].values for index in chosen])
        self.costs = np.array([known[index][0] for index in chosen])
        self.excesses = np.array([known[index][1] for index in chosen])
        pending = self._encoded([one.values for one in observations if one.state == "pending"])
        self.pending, self.finished = len(pending), len(chosen)
        self.objectives = [self._fitted(column, pending) for column in self.costs.T]
        self.constraints = [self._fitted(column, pending) for column in self.excesses.T]

    def propose(self, tried: Collection[Any], key: Key) -> Mapping[str, Any] | None:
        """The candidate that is worth most among those that were not tried; none: all were."""
        if self.pending and self.finished < FEW * self.pending:
            return self._drawn(tried, key)
        score = self._scorer()
        shares = self.rng.random((DRAWN, len(self.space)))
        best: list[tuple[float, Any, Mapping[str, Any]]] = []
        for round_ in range(ROUNDS + 1):
            found = {key(values): (row, values) for row, values in ((row, self._values(row)) for row in shares)}
            fresh = [(name, *found[name]) for name in found if name not in tried]
            if fresh:
                scores = score(self._encoded([values for _, _, values in fresh]))
                best += [(float(scores[i]), row, values) for i, (_, row, values) in enumerate(fresh)]
                best = sorted(best, key=lambda one: -one[0])[:KEPT]
            centres = [row for _, row, _ in best] + ([] if round_ else self._incumbents())
            shares = self._near(np.array(centres), 0.2 / 3**round_)
        return best[0][2] if best else None

    def _drawn(self, tried: Collection[Any], key: Key) -> Mapping[str, Any] | None:
        """The best one of a likely function (Thompson sampling): each of many slots looks where the optimum may be.

        But not where another one already looks: of few trials a model can be so sure that all its functions agree.
        """
        shares = [self.rng.random((DRAWN // 2, len(self.space))), self._near(np.array(self._incumbents()), 0.2)]
        every = {key(values): values for values in map(self._values, np.concatenate(shares))}
        fresh = [values for name, values in every.items() if name not in tried]
        if not fresh:
            return None
        at = self._encoded(fresh)
        costs = np.stack([model.draw(at, self.rng) for model in self.objectives], -1)
        beyond = sum((np.maximum(model.draw(at, self.rng), 0.0) for model in self.constraints), np.zeros(len(at)))
        weights = self.rng.dirichlet(np.ones(costs.shape[1]))
        scaled = (costs - costs.min(0)) / np.maximum(np.ptp(costs, axis=0), 1e-12)
        return fresh[int(np.lexsort(((weights * scaled).max(1), _foretold(self.objectives, at), beyond))[0])]

    # ------------------------------------------------------------------------------------------------------ inside

    def _fitted(self, values: Array, pending: Array) -> GaussianProcess:
        return GaussianProcess(self.at, values, self.choices).believing(pending)

    def _scorer(self) -> Callable[[Array], Array]:
        feasible = (self.excesses <= 0).all(1)
        if not feasible.any():
            return lambda at: log_feasibility(self.constraints, at) - FORETOLD * _foretold(self.constraints, at)
        if len(self.objectives) > 1:
            front, costs = self._front(feasible), self.costs[feasible]
            worst = costs.max(0) + BEYOND * self._spans(costs)
            state = self.rng.bit_generator.state  # the same draws for all candidates

            def several(at: Array) -> Array:
                rng = np.random.default_rng()
                rng.bit_generator.state = state
                if len(self.objectives) == 2:
                    improvement = log_hypervolume_improvement(self.objectives, at, front, worst, rng)
                else:
                    improvement = log_scalarized_improvement(self.objectives, at, front, rng)
                return improvement + log_feasibility(self.constraints, at) - FORETOLD * _foretold(self.objectives, at)

            return several
        # what is expected there, not what was measured: chance must not set the mark
        best = self.objectives[0].predict(self.at[feasible])[0].min()
        return lambda at: (
            log_expected_improvement(*self.objectives[0].predict(at), best)
            + log_feasibility(self.constraints, at)
            - FORETOLD * _foretold(self.objectives, at)
        )

    def _spans(self, costs: Array) -> Array:
        """Range of each objective; of one that is the same in all, that of all trials, or its size."""
        span, every = np.ptp(costs, axis=0), np.ptp(self.costs, axis=0)
        size = np.maximum(np.abs(costs).max(0), 1e-12)
        span = np.where(span > 1e-9 * size, span, every)
        return np.where(span > 1e-9 * size, span, size)

    def _front(self, feasible: Array) -> Array:
        costs = self.costs[feasible]
        beaten = [(costs <= one).all(1) & (costs < one).any(1) for one in costs]
        return costs[[not by.any() for by in beaten]]

    def _incumbents(self) -> list[Array]:
        order = np.lexsort((self.costs[:, 0], np.maximum(self.excesses, 0).sum(1)))
        return [self._shares(self.at[index]) for index in order[:KEPT]]

    def _near(self, centres: Array, spread: float) -> Array:
        """Rows in which some hyperparameters of a centre are moved, a choice drawn anew."""
        at = centres[self.rng.integers(len(centres), size=NEAR)]
        moved = np.clip(at + spread * self.rng.standard_normal(at.shape), 0.0, 1 - 1e-9)
        moved = np.where(self.choices, self.rng.random(at.shape), moved)
        share = 0.5 if at.shape[1] > 1 else 1.0
        return np.where(self.rng.random(at.shape) < np.where(self.choices, 0.2, share), moved, at)

    def _values(self, shares: Array) -> Mapping[str, Any]:
        return canonical(self.space, {item.name: item.at(float(x)) for item, x in zip(self.space, shares, strict=True)})

    def _encoded(self, rows: Sequence[Mapping[str, Any]]) -> Array:
        encoded = [[item.share(values[item.name]) for item in self.space] for values in rows]
        return np.array(encoded, dtype=float).reshape(len(rows), len(self.space))

    def _shares(self, point: Array) -> Array:
        """Of an encoded point: a choice's number becomes the middle of its part."""
        counts = np.array([len(item.values) for item in self.space])
        return np.where(self.choices, (point + 0.5) / counts, np.clip(point, 0.0, 1 - 1e-9))


def _foretold(models: Sequence[GaussianProcess], points: Array) -> Array:
    """Where a trial that runs will tell most of what another would, of all these quantities."""
    return np.all([model.foretold(points) for model in models], axis=0)


def _most_telling(known: Mapping[int, Any]) -> list[int]:
    """The best by the first objective and, as many, the newest."""
    if len(known) <= MOST_MODELLED:
        return list(known)
    half = MOST_MODELLED // 2
    best = sorted(known, key=lambda index: known[index][0][0])[:half]
    return sorted({*best, *[index for index in known if index not in best][-half:]})
