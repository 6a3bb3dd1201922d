"""The numbers behind PTQ methods. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from edgequant.errors import UserError
from edgequant.settings_checks import check_types


@dataclass(frozen=True, kw_only=True)
class PtqSettings:
    """How PTQ methods search.

    Raises:
        UserError: a value that cannot work; names the setting.
    """

    activation_weighted: bool = True
    """Let `mse_clip` (and the ranges under gptq and signround) weigh errors by the inputs' mean squares."""

    dampening_frac: float = 0.01
    """Of `gptq`: this share of the Hessian's mean diagonal is added to it (Frantar et al. 2022, section 3.3)."""

    shrinkage: float | None = None
    """Of `gptq`: the share of the correlations between inputs that is not believed, from 0 (all is) to 1; None finds it
    for each layer, as the one under which a part of the calibration text is likeliest by the others (Warton 2008)."""

    act_order: bool = True
    """Of `gptq`: quantise the columns with the largest inputs first, each on its own group's grid."""

    asymmetric_calibration: bool = True
    """Of `gptq`: aim at what each layer gave in the floating-point model, on the inputs that it gets behind quantised
    layers (GPTAQ, Li et al. 2025, arXiv 2504.02692), as far as that holds on calibration text that was not fitted."""

    refit_scales: bool = False
    """Of `gptq`: solve for the scales that minimise the layer's output error once the integers are chosen; fits the
    calibration text more closely, so it wants plenty of it."""

    alphas: int = 20
    """Of `awq`: exponents tried between 0 and 1 (Lin et al. 2023, equation 5)."""

    smoothing_strength: float | None = None
    """Of `smoothquant`: the migration strength alpha (Xiao et al. 2022, equation 4); None takes for each input of a
    block the one, out of 0, 0.1 ... 1, whose quantised output errs least."""

    signround_steps: int = 200
    """Of `signround`: optimiser steps per decoder block."""

    signround_learning_rate: float | None = None
    """Of `signround`: first step of sign-SGD, in integer steps, from which it falls linearly to 0 (default:
    1 / signround_steps, at most 0.01); halved where calibration text held out gets worse."""

    block_ap_steps: int = 200
    """Of `block_ap`: optimiser steps per decoder block."""

    block_ap_learning_rate: float | None = None
    """Of `block_ap`: first rate of AdamW for a weight, in steps of its group's grid; those of scales, zero points and
    norms follow from it (default: 1 / block_ap_steps, at most 0.01); halved as above."""

    tune_steps: int = 100
    """Of `e2e_qp`: optimiser steps, each on calibration.batch_size sequences, through the whole model."""

    tune_learning_rate: float = 2e-3
    """Of `e2e_qp`: first rate of AdamW, relative to each scale's and norm's size; halved where held-out text gets
    worse."""

    tune_zero_points: bool = False
    """Of `e2e_qp`: let integer zero points learn as well as scales."""

    def __post_init__(self) -> None:
        check_types(self, "ptq")
        for name in ("alphas", "signround_steps", "block_ap_steps", "tune_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"ptq.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("dampening_frac", "shrinkage", "smoothing_strength"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"ptq.{name} must be from 0 to 1, got {value}")
        for name in ("signround_learning_rate", "block_ap_learning_rate", "tune_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"ptq.{name} must be above 0 and at most 1, got {value}")
