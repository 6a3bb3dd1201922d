"""PTQ methods by name, and the numbers behind them. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgequant.errors import UserError

Fold = Literal["awq", "smoothquant"]
Rounding = Literal["rtn", "mse", "gptq"]
METHODS = ("rtn", "mse", "gptq", "awq", "smoothquant", "block")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What happens to a decoder block, in this order.

    Attributes:
        name: as the user wrote it.
        fold: scales that move difficulty between weights and activations, folded into the layer before (or none).
        rounding: how integers are chosen layer by layer.
        learn: whether rounding and ranges are then learned against the block's output.
    """

    name: str
    fold: Fold | None = None
    rounding: Rounding = "mse"
    learn: bool = False

    @property
    def needs_calibration(self) -> bool:
        """Whether activations decide; `rtn` and `mse` can do without."""
        return self.fold is not None or self.rounding == "gptq" or self.learn


def parse_method(name: str) -> Method:
    """Read a method: one of METHODS, or several joined by `+` in the order fold, rounding, learning.

    `awq` alone rounds with `mse` (its search over clipping ranges), `smoothquant` alone with `rtn` as in the paper,
    `block` starts from `mse`; `awq+gptq`, `gptq+block`, `smoothquant+gptq+block` do what they say.

    Raises:
        UserError: an unknown part, a part given twice, or an order that makes no sense.
    """
    parts = name.split("+")
    unknown = [part for part in parts if part not in METHODS]
    if unknown:
        raise UserError(f"PTQ method {unknown[0]!r} is unknown; use {', '.join(METHODS)}, or several such as awq+gptq")
    folds = [part for part in parts if part in ("awq", "smoothquant")]
    roundings = [part for part in parts if part in ("rtn", "mse", "gptq")]
    learn = parts.count("block")
    if len(folds) > 1 or len(roundings) > 1 or learn > 1 or parts != [*folds, *roundings, *["block"] * learn]:
        raise UserError(
            f"PTQ method {name!r} does not combine: at most one of awq, smoothquant, then at most one of rtn, mse, "
            "gptq, then block, e.g. awq+gptq+block"
        )
    alone = "rtn" if folds == ["smoothquant"] and not learn else "mse"
    return Method(
        name=name,
        fold=folds[0] if folds else None,  # type: ignore[arg-type]
        rounding=roundings[0] if roundings else alone,  # type: ignore[arg-type]
        learn=bool(learn),
    )


@dataclass(frozen=True, kw_only=True)
class PtqSettings:
    """How PTQ methods search.

    Raises:
        UserError: a value that cannot work; names the setting.
    """

    activation_weighted: bool = True
    """Let `mse` (and the ranges under gptq and block) weigh errors by the inputs' mean squares."""

    dampening_frac: float = 0.01
    """Of `gptq`: this share of the Hessian's mean diagonal is added to it (Frantar et al. 2022, section 3.3)."""

    act_order: bool = True
    """Of `gptq`: quantise the columns with the largest inputs first, each on its own group's grid."""

    refit_scales: bool = False
    """Of `gptq`: solve for the scales that minimise the layer's output error once the integers are chosen; fits the
    calibration text more closely, so it wants plenty of it."""

    alphas: int = 20
    """Of `awq`: exponents tried between 0 and 1 (Lin et al. 2023, equation 5)."""

    smoothing_strength: float | None = None
    """Of `smoothquant`: the migration strength alpha (Xiao et al. 2022, equation 4); None takes for each input of a
    block the one, out of 0, 0.1 ... 1, whose quantised output errs least."""

    signround_steps: int = 200
    """Of `block`: optimiser steps per decoder block."""

    signround_learning_rate: float | None = None
    """Of `block`: first step of sign-SGD, in integer steps; it falls linearly to 0 (default: 1 / signround_steps)."""

    def __post_init__(self) -> None:
        for name in ("alphas", "signround_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"ptq.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("dampening_frac", "smoothing_strength"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"ptq.{name} must be from 0 to 1, got {value}")
        if self.signround_learning_rate is not None and not 0 < self.signround_learning_rate <= 1:
            raise UserError(
                f"ptq.signround_learning_rate must be above 0 and at most 1, got {self.signround_learning_rate}"
            )
