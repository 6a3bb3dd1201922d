"""The mean x x^T of a layer's inputs, and how much of what it says of pairs of inputs is chance.

Warton 2008, "Penalized normal likelihood and ridge regularization of correlation and covariance matrices", Journal of
the American Statistical Association 103(481).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FOLDS = 4
SHARES = tuple(step / 40 for step in range(1, 41))  # that are tried
FEATURES = 512  # drawn, with as many of the tokens, where there are more


@dataclass(frozen=True)
class SecondMoment:
    """Attributes:
    mean: of x x^T over a layer's inputs x, [in, in] float32.
    chance: the share of the correlations between inputs that is put down to chance, from 0 to 1.
    """

    mean: Tensor
    chance: float = 0.0

    def without_chance(self, share: float | None = None) -> Tensor:
        """The mean [in, in] whose pairs count by what is not chance, or by 1 - `share` where one is given."""
        believed = 1 - (self.chance if share is None else share)
        return torch.lerp(torch.diag(self.mean.diagonal()), self.mean, believed)

    def __add__(self, other: SecondMoment) -> SecondMoment:
        """Of inputs that both matter; what is chance counts by how much of the sum it is in."""
        own, others = float(self.mean.trace()), float(other.mean.trace())
        chance = (own * self.chance + others * other.chance) / (own + others) if own + others else 0.0
        return SecondMoment(self.mean + other.mean, chance)


class SecondMomentSum:
    """Adds up inputs in the order of the text.

    What is made up for by inputs that go together in the calibration text alone would hurt on any other: of few tokens
    much goes together by chance, and of few documents much by topic.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.samples: list[Tensor] = []
        self.features: Tensor | None = None

    def add(self, inputs: Tensor, product: Tensor | None = None) -> None:
        """Inputs [tokens, in] float32, one token behind the other; their x^T x [in, in] where it is known already."""
        product = inputs.t() @ inputs if product is None else product
        if self.total is None or self.features is None:
            generator = torch.Generator().manual_seed(0)
            self.features = torch.randperm(inputs.shape[1], generator=generator)[:FEATURES].to(inputs.device)
            self.total = torch.zeros_like(product)
        self.total += product
        self.samples.append(inputs[:, self.features])

    @property
    def mean(self) -> Tensor:
        """x x^T [in, in] of all inputs so far, at least one."""
        assert self.total is not None
        return self.total / sum(map(len, self.samples))

    def moment(self) -> SecondMoment:
        """The mean, and how much of it is chance, which takes time to tell."""
        sample, mean = torch.cat(self.samples), self.mean
        kept = round(len(sample) * sample.shape[1] / len(mean))  # tokens per feature decide what is chance
        spread = torch.linspace(0, len(sample) - 1, max(1, kept)).round().long()
        return SecondMoment(mean, chance_share(sample[spread]))


def chance_share(inputs: Tensor) -> float:
    """The shrinkage of correlations under which text that was left out is likeliest (Warton 2008, section 4).

    R = (1 - share) R_seen + share I, the normal likelihood of each fold under the R of all others. Inverting R is what
    `gptq` does too: directions in which few tokens happen to vary little would attract the errors of all others.

    Args:
        inputs: [tokens, features] float32, in the order of the text; a fold is a part of it, since tokens side by side
            resemble each other more than any two.

    Returns:
        From 0 (all of it holds elsewhere) to 1 (nothing does, or there is too little text to tell).
    """
    if len(inputs) < 2 * FOLDS or inputs.shape[1] < 2:
        return 1.0
    rms = inputs.square().mean(0).sqrt()
    parts = (inputs[:, rms > 0] / rms[rms > 0]).tensor_split(FOLDS)
    squares = [part.t() @ part for part in parts]
    if not len(squares[0]):
        return 1.0
    total, shares = sum(squares), torch.tensor(SHARES, device=inputs.device)
    lost = torch.zeros_like(shares)
    for part, own in zip(parts, squares, strict=True):
        values, directions = torch.linalg.eigh((total - own) / (len(inputs) - len(part)))
        left_out = torch.einsum("if,ij,jf->f", directions, own, directions)
        deemed = torch.lerp(values.clamp(min=0), torch.ones_like(values), shares.unsqueeze(-1))  # [shares, features]
        lost += (left_out / deemed + len(part) * deemed.log()).sum(-1)
    return SHARES[int(lost.argmin())]
