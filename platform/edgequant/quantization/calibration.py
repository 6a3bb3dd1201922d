"""How PTQ methods, and QAT before its first step, look at activations. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgequant.errors import UserError
from edgequant.settings_checks import check_types

ObserverName = Literal["moving_average_minmax", "minmax", "percentile", "mse"]


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """How much text calibration sees, in which batches, and how ranges are taken from it.

    Raises:
        UserError: a count below 1; names the setting and its value.
    """

    num_calibration_samples: int = 64
    """Calibration sequences; 128 of 2,048 tokens are usual on a GPU. In qat, training sequences."""

    sequence_length: int | None = None
    """Tokens per calibration sequence; None: 512, or as many as the model's context and the text allow. qat calibrates
    on its training sequences, as long as they are."""

    batch_size: int = 8
    """Calibration sequences per forward pass, and per step of a method that learns."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of calibration passes: auto takes bfloat16 where the device computes it natively."""

    offload: bool = False
    """Keep the inputs of the current block in main memory instead of on the device."""

    observer: ObserverName = "moving_average_minmax"
    """How static activation ranges are found: moving_average_minmax (of each batch), minmax, percentile or mse."""

    def __post_init__(self) -> None:
        check_types(self, "calibration")
        for name in ("num_calibration_samples", "sequence_length", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"calibration.{name} must be at least 1, got {value}")

    def check_training(self, sequence_length: int) -> None:
        """Refuse another length than training's in qat, which calibrates on its training sequences.

        Raises:
            UserError: names both.
        """
        if self.sequence_length not in (None, sequence_length):
            raise UserError(
                f"calibration.sequence_length must be training.sequence_length ({sequence_length}) in qat, got "
                f"{self.sequence_length}; leave it out"
            )
