"""Rounding towards what a layer gave in the floating-point model, on the inputs that it gets behind quantised layers.

Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", arXiv 2504.02692: instead of
||(W - Q) X'|| with the inputs X' behind quantised layers, ||W X - Q X'|| is made small. The integers are searched for
as before, of another weight: W + W D, where D X' is what a linear map of X' knows of X - X'. D is a ridge regression
whose ridge is chosen on calibration text that it was not fitted to: without one it would learn the text by heart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edgequant.quantization.ptq.second_moments import SecondMomentSum

RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the mean square of an input
SKETCH = 64  # outputs by which a ridge is judged, random mixtures of all: their squared errors add up to the same


class _Half(NamedTuple):
    """Sums over tokens: X'^T X' and X'^T (X - X'), both [in, in]."""

    squares: Tensor
    missing: Tensor

    def plus(self, other: _Half) -> _Half:
        return _Half(self.squares + other.squares, self.missing + other.missing)


class Drift:
    """What has become of a layer's inputs: moments over the calibration text in two halves.

    Attributes:
        inputs: second moments of the inputs as they are.
    """

    def __init__(self) -> None:
        self.inputs = SecondMomentSum()
        self._halves: list[_Half] = []

    def add(self, inputs: Tensor, floating: Tensor) -> None:
        """A batch's inputs [tokens, in] float32 as they are, and in the floating-point model."""
        cuts = [len(inputs) // 2, len(inputs) - len(inputs) // 2]
        pairs = zip(inputs.split(cuts), floating.split(cuts), strict=True)
        new = [_Half(own.t() @ own, own.t() @ (aim - own)) for own, aim in pairs]
        self.inputs.add(inputs, new[0].squares + new[1].squares)
        self._halves = [one.plus(more) for one, more in zip(self._halves, new, strict=True)] if self._halves else new

    @torch.no_grad()
    def corrections(self, weights: list[Tensor]) -> list[Tensor]:
        """What to add to weights [out, in] that read these inputs; zeros where nothing helps on text held out."""
        weight = torch.cat(weights).float()
        ridge = self._best_ridge(weight)
        if ridge is None:
            return [torch.zeros_like(part) for part in weights]
        found = _mapped(self._halves[0].plus(self._halves[1]), ridge, weight)
        return [part.to(weights[0].dtype) for part in found.split([len(part) for part in weights])]

    def _best_ridge(self, weight: Tensor) -> float | None:
        """The one whose map of either half makes the outputs of the other err least; None where none does any good."""
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (SKETCH, len(weight)), generator=generator).to(weight) * 2 - 1
        sketch = signs @ weight if len(weight) > SKETCH else weight
        wanted = [sketch @ half.missing.t() for half in self._halves]
        gains: dict[int, float] = {}

        def gain(place: int) -> float:
            """By how much a map fitted to either half of the text lowers the squared error of outputs on the other."""
            if place not in gains:
                gains[place] = 0.0
                for fitted, judged in ((0, 1), (1, 0)):
                    found = _solved(self._halves[fitted].squares, wanted[fitted], RIDGES[place])
                    gained = found * (2 * wanted[judged] - found @ self._halves[judged].squares)
                    gains[place] += float(gained.sum())
            return gains[place]

        best, last = -1, len(RIDGES) // 2
        while best != last:  # uphill: too little of a ridge learns by heart, too much learns nothing
            best, last = last, max(range(max(0, last - 1), min(len(RIDGES), last + 2)), key=gain)
        return RIDGES[best] if gains[best] > 0 else None


def _mapped(half: _Half, ridge: float, weight: Tensor) -> Tensor:
    """W D [out, in] with D^T = (X'^T X' + ridge)^-1 X'^T (X - X'); zeros where that cannot be solved."""
    if len(weight) < len(half.squares):
        return _solved(half.squares, weight @ half.missing.t(), ridge)
    return weight @ _solved(half.squares, half.missing.t(), ridge)


def _solved(squares: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """B (X'^T X' + ridge)^-1 [rows, in] of `wanted` B [rows, in]; zeros where that cannot be solved."""
    damped = squares.clone()
    damped.diagonal().add_(ridge * squares.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed or not bool(torch.isfinite(lower.diagonal()).all()):  # anything not finite reaches the diagonal
        return torch.zeros_like(wanted)
    return torch.cholesky_solve(wanted.t(), lower).t()
