"""A Gaussian process over hyperparameters, from a handful of trials to a few hundred."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Array = Any
JITTER = 1e-6  # of the kernel's scale
# Priors of the logarithms, of which few trials say little: hyperparameters act over about their whole range (more of
# them over more, Hvarfner et al. 2024, arXiv 2402.02229), and most of what differs between trials is no chance.
LENGTH, LENGTH_SPREAD = 0.5, 0.8
NOISE, NOISE_SPREAD = -6.5, 1.5
SCALE_SPREAD = 1.0
TREND, TREND_SPREAD = 0.0, 1.5


class GaussianProcess:
    """Posterior of one quantity, by a Matérn 5/2 kernel with a length for each hyperparameter, the likeliest ones.

    Args:
        points: trials by hyperparameters, from 0 to 1; of a choice, the number of the value.
        values: of the trials.
        choices: which hyperparameters are choices: two values are equal or not.
    """

    def __init__(self, points: Array, values: Array, choices: Array) -> None:
        self.points, self.choices = points, choices
        self.mean, self.spread = float(np.mean(values)), float(np.std(values)) or 1.0
        self.values = (values - self.mean) / self.spread
        self.squares, self.trend = self._squares(points, points), self._trend(points, points)
        self.theta = self._likeliest()
        self.without_beliefs = self
        self._condition(points, self.values)

    def believing(self, points: Array) -> GaussianProcess:
        """The same one after trials at these points came out as it expects: where it has looked, it need not look."""
        if not len(points):
            return self
        other = object.__new__(GaussianProcess)
        other.__dict__.update(self.__dict__)
        expected = (self.predict(points)[0] - self.mean) / self.spread
        other._condition(np.vstack([self.points, points]), np.concatenate([self.values, expected]))
        return other

    def foretold(self, points: Array) -> Array:
        """At which points most of the variance goes when the trials that are believed in end."""
        if self.without_beliefs is self:
            return np.zeros(len(points), dtype=bool)
        return self.predict(points)[1] ** 2 < 0.5 * self.without_beliefs.predict(points)[1] ** 2

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation at points, of the quantity without the noise of a trial."""
        kernel = self._kernel(points, self.at)
        mean = kernel @ self.weights
        left = solve_triangular(self.factor[0], kernel.T, lower=True)
        variance = np.maximum(self._variance(points) - (left**2).sum(0), 1e-12)
        return self.mean + self.spread * mean, self.spread * np.sqrt(variance)

    def draw(self, points: Array, rng: Any) -> Array:
        """One function of those that are likely, at points."""
        kernel = self._kernel(points, self.at)
        left = solve_triangular(self.factor[0], kernel.T, lower=True)
        covariance = self._kernel(points, points) - left.T @ left
        ridge = JITTER * float(np.trace(covariance) / len(points)) + 1e-9
        roots, axes = np.linalg.eigh(covariance)
        noise = axes @ (np.sqrt(np.maximum(roots, ridge)) * rng.standard_normal(len(points)))
        return self.mean + self.spread * (kernel @ self.weights + noise)

    # ------------------------------------------------------------------------------------------------------ inside

    def _condition(self, points: Array, values: Array) -> None:
        _, scale, _, noise = self._parts(self.theta)
        self.at = points
        kernel = self._kernel(points, points) + (noise + JITTER * scale) * np.eye(len(points))
        self.factor = cho_factor(kernel, lower=True)
        self.weights = cho_solve(self.factor, values)

    def _kernel(self, one: Array, other: Array) -> Array:
        lengths, scale, slope, _ = self._parts(self.theta)
        matern = _matern(self._distances(self._squares(one, other), lengths))[0]
        return scale * matern + slope * self._trend(one, other)

    def _variance(self, points: Array) -> Array:
        _, scale, slope, _ = self._parts(self.theta)
        middle = (points - 0.5) ** 2
        trend = np.where(self.choices, 1.0, 12 * middle + 180 * (middle - 1 / 12) ** 2)
        return scale + slope * trend.mean(1)

    def _trend(self, one: Array, other: Array) -> Array:
        """Kernel of a sum over hyperparameters: a parabola in each number, a constant for each value of a choice."""
        total = np.zeros((len(one), len(other)))
        for i, is_choice in enumerate(self.choices):
            a, b = one[:, i], other[:, i]
            if is_choice:
                total += a[:, None] == b
            else:
                a, b = a - 0.5, b - 0.5
                total += 12 * np.outer(a, b) + 180 * np.outer(a**2 - 1 / 12, b**2 - 1 / 12)
        return total / len(self.choices)

    def _squares(self, one: Array, other: Array) -> Array:
        """Hyperparameters by points by points: squared distances."""
        difference = one.T[:, :, None] - other.T[:, None, :]
        return np.where(self.choices[:, None, None], difference != 0, difference**2)

    @staticmethod
    def _distances(squares: Array, lengths: Array) -> Array:
        return np.tensordot(lengths**-2, squares, axes=1)

    def _parts(self, theta: Array) -> tuple[Array, float, float, float]:
        scale, slope, noise = (float(np.exp(one)) for one in theta[-3:])
        return np.exp(theta[:-3]), scale, slope, noise

    def _likeliest(self) -> Array:
        count = self.points.shape[1]
        length = LENGTH + 0.5 * np.log(count)
        centre = np.array([*[length] * count, 0.0, TREND, NOISE])
        spread = np.array([*[LENGTH_SPREAD] * count, SCALE_SPREAD, TREND_SPREAD, NOISE_SPREAD])
        starts = [
            centre,
            centre - np.array([*[1.5] * count, 0.0, 2.0, 0.0]),
            centre + np.array([*[0.0] * (count + 2), 3.0]),
        ]
        bounds = [*[(-4.0, 6.0)] * count, (-5.0, 5.0), (-8.0, 4.0), (-12.0, 0.5)]
        given: dict[str, Any] = {"jac": True, "bounds": bounds, "method": "L-BFGS-B", "options": {"maxiter": 60}}
        found = [minimize(self._loss, start, (centre, spread), **given) for start in starts]
        return min(found, key=lambda one: one.fun).x

    def _loss(self, theta: Array, centre: Array, spread: Array) -> tuple[float, Array]:
        """Negative log posterior of the logarithms of lengths, scale and noise, and its gradient."""
        lengths, scale, slope, noise = self._parts(theta)
        matern, change = _matern(self._distances(self.squares, lengths))
        identity = np.eye(len(self.values))
        factor = cho_factor(scale * (matern + JITTER * identity) + slope * self.trend + noise * identity, lower=True)
        weights = cho_solve(factor, self.values)
        inner = cho_solve(factor, identity) - np.outer(weights, weights)
        by_length = [
            scale * (change * one).ravel() @ inner.ravel() / length**2
            for one, length in zip(self.squares, lengths, strict=True)
        ]
        gradient = 0.5 * np.array(
            [*by_length, scale * (matern * inner).sum(), slope * (self.trend * inner).sum(), noise * np.trace(inner)]
        )
        away = (theta - centre) / spread
        loss = 0.5 * self.values @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * away @ away
        return float(loss), gradient + away / spread


def _matern(squared: Array) -> tuple[Array, Array]:
    """Matérn 5/2 of squared distances, and what its derivative by a log length is a multiple of."""
    distance = np.sqrt(5 * np.maximum(squared, 0.0))
    decay = np.exp(-distance)
    return (1 + distance + distance**2 / 3) * decay, 5 / 3 * (1 + distance) * decay
