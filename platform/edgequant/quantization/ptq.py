"""Post-training quantisation: one verb, `quantize`, over methods that choose the integers without training."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.quantization import qat
from edgequant.quantization.observers import ObserverName
from edgequant.quantization.scheme import Scheme

MethodName = Literal["rtn"]


@torch.no_grad()
def quantize(
    model: nn.Module,
    scheme: Scheme,
    *,
    calibration: list[Tensor] | None = None,
    method: MethodName = "rtn",
    observer: ObserverName = "ema",
) -> None:
    """Quantise a model in place to integer layers.

    Args:
        model: floating-point model in evaluation mode.
        scheme: what to quantise and how.
        calibration: token batches [batch, length]; needed by schemes with static activation ranges.
        method: `rtn` rounds every weight to the nearest integer of its group's range.
        observer: how static activation ranges are found.

    Raises:
        UserError: unknown method, or a static scheme without calibration batches.
    """
    if method != "rtn":
        raise UserError(f"PTQ method {method!r} is unknown; use rtn")
    qat.prepare(model, scheme, observer=observer)
    if qat.has_static_ranges(model):
        if not calibration:
            raise UserError(f"scheme {scheme.name} has static activation ranges; give calibration text")
        qat.calibrate(model, calibration)
    qat.convert(model)
