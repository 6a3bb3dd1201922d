"""The numbers behind PTQ methods. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgequant.errors import UserError
from edgequant.quantization.scheme import ObserverName


@dataclass(frozen=True, kw_only=True)
class PtqSettings:
    """How PTQ methods calibrate and search.

    Attributes:
        sequences: calibration sequences; 128 of 2,048 tokens are usual on a GPU.
        sequence_length: tokens per calibration sequence.
        batch_size: calibration sequences per forward pass, and per step of `signround`.
        precision: of calibration passes: auto takes bfloat16 where the device computes it natively.
        offload: keep the inputs of the current block in main memory instead of on the device.
        observer: how static activation ranges are found: moving_average_minmax, minmax, percentile or mse.
        activation_weighted: let `mse_clip` (and the ranges under gptq and signround) weigh errors by the inputs' mean
            squares.
        damping: of `gptq`: this share of the Hessian's mean diagonal is added to it (Frantar et al. 2022, section 3.3).
        act_order: of `gptq`: quantise the columns with the largest inputs first, each on its own group's grid.
        refit_scales: of `gptq`: solve for the scales that minimise the layer's output error once the integers are
            chosen; fits the calibration text more closely, so it wants plenty of it.
        alphas: of `awq`: exponents tried between 0 and 1 (Lin et al. 2023, equation 5).
        smoothing: of `smoothquant`: the migration strength alpha (Xiao et al. 2022, equation 4); None takes for
            each input of a block the one, out of 0, 0.1 ... 1, whose quantised output errs least.
        block_steps: of `signround`: optimiser steps per decoder block.
        block_learning_rate: of `signround`: first step of sign-SGD, in integer steps; it falls linearly to 0 (default:
            1 / block_steps).
    """

    sequences: int = 64
    sequence_length: int = 512
    batch_size: int = 8
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    offload: bool = False
    observer: ObserverName = "moving_average_minmax"
    activation_weighted: bool = True
    damping: float = 0.01
    act_order: bool = True
    refit_scales: bool = False
    alphas: int = 20
    smoothing: float | None = None
    block_steps: int = 200
    block_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("sequences", "sequence_length", "batch_size", "alphas", "block_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"ptq setting {name} {getattr(self, name)} is impossible; expected at least 1")
        for name in ("damping", "smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"ptq setting {name} {value} is impossible; expected 0 to 1")
        if self.block_learning_rate is not None and not 0 < self.block_learning_rate <= 1:
            raise UserError(
                f"ptq setting block_learning_rate {self.block_learning_rate} is impossible; expected above 0, at most 1"
            )
