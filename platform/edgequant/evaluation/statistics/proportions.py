"""Intervals of shares that do not collapse in small samples: 0 of 20 is no certainty, nor are 20 equal pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

Interval = tuple[float, float]


class Share(NamedTuple):
    """The mean of so many values between 0 and 1: of right or wrong ones, a rate."""

    mean: float
    items: float


def wilson(share: Share, confidence: float = 0.95) -> Interval:
    """The score interval of a share (Wilson 1927, equation 4): 0 of 20 gives 0 to 0.161.

    Values that are neither 0 nor 1 vary by at most mean (1 - mean), as those that are do, so it is too wide for them
    if anything.
    """
    z, (mean, count) = _quantile(confidence), share
    center = mean + z * z / (2 * count)
    half = z * math.sqrt(mean * (1 - mean) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return _within(0.0, (center - half) / scale, mean), _within(mean, (center + half) / scale, 1.0)


def mean_of_shares(shares: Sequence[Share], confidence: float = 0.95) -> Interval:
    """Interval of the mean of independent shares from Wilson's of each (MOVER: Zou and Donner 2008, equation 1)."""
    ends = [wilson(share, confidence) for share in shares]
    below = math.hypot(*(share.mean - low for share, (low, _) in zip(shares, ends, strict=True)))
    above = math.hypot(*(high - share.mean for share, (_, high) in zip(shares, ends, strict=True)))
    mean = math.fsum(share.mean for share in shares)
    return max(0.0, (mean - below) / len(shares)), min(1.0, (mean + above) / len(shares))


class PairedShares(NamedTuple):
    """What was lost and what was gained on the same items, summed up: of right or wrong ones, how many.

    Their difference per item has Wald's interval with one item more in either cell (Bonett and Price 2012, equation 3):
    20 pairs without a difference give -0.126 to 0.126. Differences within -1 and 1 vary by at most what as many whole
    ones would, so it is too wide for them if anything.
    """

    lost: float
    gained: float
    items: float

    @property
    def center(self) -> float:
        """The middle of the interval, which lies nearer to 0 than the difference."""
        return (self.gained - self.lost) / (self.items + 2)

    @property
    def spread(self) -> float:
        """Standard error."""
        discordant = (self.lost + self.gained + 2) / (self.items + 2)
        return math.sqrt((discordant - self.center**2) / (self.items + 2))


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _within(low: float, value: float, high: float) -> float:
    """Rounding must not put an end beyond 0, 1 or the share itself."""
    return min(max(low, value), high)
