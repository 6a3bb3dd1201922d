"""What quantisation-aware training needs to know beside the scheme. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgequant.errors import UserError


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings:
    """When activations are quantised during training, and how static ranges are found.

    Attributes:
        activation_delay: share of the steps before activations are quantised at all (Jacob et al. 2017, section 3.1).
        freeze_ranges: share of the steps after which static ranges stop following the data.
        observer: of static ranges: `ema` (moving average of extremes), `minmax`, `percentile` or `mse`.
        learned_scales: weights' scales and zero points are trained too (LSQ+, arXiv 2004.09576) instead of following
            each group's extremes.
        calibration_sequences: training sequences that show PTQ (and QAT, before its first step) the static ranges.
    """

    activation_delay: float = 0.1
    freeze_ranges: float = 0.8
    observer: Literal["ema", "minmax", "percentile", "mse"] = "ema"
    learned_scales: bool = False
    calibration_sequences: int = 32

    def __post_init__(self) -> None:
        for name in ("activation_delay", "freeze_ranges"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"quantization.{name} {getattr(self, name)} is impossible; expected a share of the steps, 0 to 1"
                )
        if self.calibration_sequences < 1:
            raise UserError(
                f"quantization.calibration_sequences {self.calibration_sequences} is impossible; expected at least 1"
            )
