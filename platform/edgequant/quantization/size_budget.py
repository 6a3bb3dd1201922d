"""`SizeBudget`: how large a checkpoint may become, read from `bits_per_parameter=4.5` or `megabytes=80`. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from edgequant.errors import UserError

Unit = Literal["bits_per_parameter", "megabytes"]
SUFFIXES: dict[Unit, str] = {"bits_per_parameter": "bpp", "megabytes": "MB"}  # in a scheme's name, behind the @
MEGABYTE = 1e6  # as the metric size/checkpoint_gb counts
CANDIDATES = (3, 4, 5, 6, 8)  # bits that a layer may get
RANGES: dict[Unit, tuple[float, float]] = {"bits_per_parameter": (0, 32), "megabytes": (0.001, 1e6)}
EXAMPLES = "bits_per_parameter=4.5 or megabytes=80"


@dataclass(frozen=True, kw_only=True)
class SizeBudget:
    """The most that a checkpoint's weight file may take: integers, scales, zero points and all that is not quantised.

    Attributes:
        unit: bits for each parameter of the floating-point model (tied weights once), or megabytes of 10^6 bytes.
        amount: how many of them.
        candidates: bits, 2 to 8, that a layer may get, ascending.
    """

    unit: Unit
    amount: float
    candidates: tuple[int, ...] = CANDIDATES

    def __post_init__(self) -> None:
        if self.unit not in SUFFIXES:
            raise UserError(
                f"unit of size_budget must be {' or '.join(SUFFIXES)}, got {self.unit!r}; give it as {EXAMPLES}"
            )
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise UserError(
                f"size_budget must be a number above 0, got {self.amount:g} {self.unit}; give it as {EXAMPLES}"
            )
        lowest, highest = RANGES[self.unit]
        if not lowest <= self.amount <= highest:
            raise UserError(
                f"size_budget must be {lowest:g} to {highest:,.0f} {self.unit}, got {self.amount:g}; "
                f"give it as {EXAMPLES}"
            )
        if not self.candidates or {*self.candidates} - {*range(2, 9)} or [*self.candidates] != sorted(self.candidates):
            raise UserError(
                f"candidate bits of size_budget must be some of 2 to 8 in rising order, got {self.candidates}"
            )
        if self.unit == "bits_per_parameter" and self.amount <= self.candidates[0]:
            raise UserError(
                f"size_budget must be above {self.candidates[0]} bits per parameter, which a layer gets at least, "
                f"scales on top, got {self.amount:g}"
            )

    @property
    def suffix(self) -> str:
        """What a scheme's name carries behind the @: 4.5bpp or 80MB."""
        return f"{self.amount:.9g}{SUFFIXES[self.unit]}"

    def bytes_for(self, parameters: int) -> float:
        """The budget in bytes, for a model with so many parameters."""
        return self.amount * (parameters / 8 if self.unit == "bits_per_parameter" else MEGABYTE)

    def amount_of(self, size: float, parameters: int) -> str:
        """A size in bytes as the budget would state it."""
        amount = size / self.bytes_for(parameters) * self.amount
        return f"{self.unit}={amount:.4g}"


def parse_size_budget(text: str) -> SizeBudget:
    """Read `bits_per_parameter=4.5` or `megabytes=80`.

    Raises:
        UserError: another unit, or no positive number.
    """
    given, _, amount = text.partition("=")
    unit = next((unit for unit in SUFFIXES if unit == given.strip()), None)
    if unit is None:
        raise UserError(f"size_budget must begin with {'= or '.join(SUFFIXES)}=, got {text!r}; give it as {EXAMPLES}")
    try:
        number = float(amount)
    except ValueError:
        raise UserError(f"size_budget {text!r}: {amount.strip()!r} is not a number; give it as {EXAMPLES}") from None
    return SizeBudget(unit=unit, amount=number)


def budget_of_suffix(suffix: str) -> SizeBudget | None:
    """The inverse of `SizeBudget.suffix`, or None where it is none."""
    match = re.fullmatch(r"(?P<amount>\d+(\.\d+)?)(?P<unit>bpp|MB)", suffix)
    if match is None:
        return None
    units: dict[str, Unit] = {short: unit for unit, short in SUFFIXES.items()}
    return SizeBudget(unit=units[match["unit"]], amount=float(match["amount"]))
