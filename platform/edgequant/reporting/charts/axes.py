"""Axes that begin and end where values can be, with round ticks; logarithmic where values are spread widely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgequant.reporting.columns import metric

LOG_ABOVE = 10.0  # an axis whose largest value is more than so many times the smallest is logarithmic; of shares none
CHANGES = ("size", "deploy", "qat")  # whose shares are of what was saved or won, and below 0 where it was lost
MARGIN = 0.08  # of the values' span, at each end
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, in the unit that is shown; `ticks` lie within."""

    low: float
    high: float
    is_logarithmic: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one; one beyond an end lies at that end."""
        low, high, here = (self._scaled(each) for each in (self.low, self.high, min(max(value, self.low), self.high)))
        return (here - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_logarithmic else value


def axis(key: str, values: Sequence[float], most: int = 5) -> Axis:
    """An axis for a metric.

    Args:
        key: the metric's name, which tells where its values can be.
        values: to be seen, intervals' ends among them, in the unit that is shown.
        most: about how many ticks.
    """
    floor, ceiling = possible(key)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high > LOG_ABOVE * low and ceiling == math.inf:
        margin = (high / low) ** MARGIN
        low, high = max(low / margin, floor), min(high * margin, ceiling)
        return Axis(low, high, True, _powers(low, high, most))
    margin = MARGIN * (high - low) or 0.05 * abs(high) or 0.5
    low, high = max(low - margin, floor), min(high + margin, ceiling)
    if low >= high:  # all of them at one end of what can be
        low, high = (low, low + margin) if high >= floor + margin else (floor, floor + margin)
    return Axis(low, high, False, _round_numbers(low, high, most))


def possible(key: str) -> tuple[float, float]:
    """The least and the greatest value that a metric can have, in the unit that is shown; infinite where none is known.

    A perplexity is at least 1; a share of questions lies between 0 and 100; sizes, times and memory are not negative.
    """
    group, _, own = key.partition("/")
    shown = metric(key)
    if group != "parity" and own.startswith("perplexity"):
        return 1.0, math.inf
    if shown.unit == "%":
        return (-math.inf if group in CHANGES else 0.0), 100.0
    is_amount = shown.better == "lower" or group in ("size", "latency", "energy", "train")
    return (0.0 if is_amount and "delta" not in own and "headroom" not in own else -math.inf), math.inf


def tick_label(value: float) -> str:
    """As short as it can be: `2,000`, `0.5`."""
    return f"{value:,.10g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def _round_numbers(low: float, high: float, most: int) -> tuple[float, ...]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in STEPS if each * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(number * step, 12) for number in range(first, last + 1))


def _powers(low: float, high: float, most: int) -> tuple[float, ...]:
    """Of 1, 2 and 5 times powers of ten those within; of too many only 1s and 5s, only 1s, every second of these."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 5), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    return tuple(ticks[:: math.ceil(len(ticks) / most) or 1])
