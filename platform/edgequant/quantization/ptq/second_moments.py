"""The mean x x^T of a layer's inputs, and how much of what it says of pairs of inputs is chance.

Schäfer and Strimmer 2005, "A shrinkage approach to large-scale covariance matrix estimation and implications for
functional genomics", Statistical Applications in Genetics and Molecular Biology 4(1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECES = 16  # of the text, what its inputs are compared between
FEATURES = 512  # drawn to tell the share of chance: a mean over 130,000 pairs


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

    What is made up for by inputs that go together in the calibration text alone would hurt on any other. Of few tokens
    much goes together by chance, and of few documents much by topic; so the text is cut into pieces, and what differs
    between these is what may differ elsewhere.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.samples: list[Tensor] = []
        self.features: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Inputs [tokens, in] float32, one token behind the other."""
        product = inputs.t() @ inputs
        if self.total is None or self.features is None:
            generator = torch.Generator().manual_seed(0)
            self.features = torch.randperm(inputs.shape[1], generator=generator)[:FEATURES].to(inputs.device)
            self.total = torch.zeros_like(product)
        self.total += product
        self.samples.append(inputs[:, self.features])

    def moment(self) -> SecondMoment:
        """Of all inputs so far, at least one."""
        assert self.total is not None
        sample = torch.cat(self.samples)
        return SecondMoment(self.total / len(sample), chance_share(sample))


def chance_share(inputs: Tensor) -> float:
    """The shrinkage of correlations with the least expected squared error (Schäfer and Strimmer 2005, equation 10).

    lambda = sum of Var(r_ij) over sum of r_ij^2, i and j different; the variance is that of a mean over pieces of the
    text, of tokens that lie side by side and so resemble each other more than any two.

    Args:
        inputs: [tokens, features] float32, in the order of the text.

    Returns:
        From 0 (what goes together does so in every piece) to 1 (nothing that is seen can be told from chance, or there
        is too little text to tell).
    """
    pieces = min(PIECES, len(inputs) // 2)
    if pieces < 2 or inputs.shape[1] < 2:
        return 1.0
    rms = inputs.square().mean(0).sqrt()
    parts = torch.where(rms > 0, inputs / rms.clamp(min=1e-30), 0.0).tensor_split(pieces)
    correlations = torch.stack([_pairs(part) for part in parts])  # [pieces, features, features]
    weights = torch.tensor([len(part) / len(inputs) for part in parts], device=inputs.device).view(-1, 1, 1)
    mean = (weights * correlations).sum(0)
    spread = (weights.square() * (correlations - mean).square()).sum() * pieces / (pieces - 1)
    explained = mean.square().sum()
    return float((spread / explained).clamp(0, 1)) if explained > 0 else 1.0


def _pairs(part: Tensor) -> Tensor:
    product = part.t() @ part / len(part)
    return product.fill_diagonal_(0)
