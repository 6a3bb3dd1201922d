"""Whether integers and a stored scale can stand for a weight at all."""

from __future__ import annotations

import torch
from torch import Tensor

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.affine import quantize_weight
from edgequant.quantization.scheme import WeightSpec

_SAFE = 65504.0  # a range within float16 gives a scale within float16


def check_representable(name: str, weight: Tensor, spec: WeightSpec) -> None:
    """Refuse a weight [out, in] that is NaN or infinite somewhere, or whose scale is beyond its storage type.

    Raises:
        UserError: names it.
    """
    if weight.is_meta:
        return
    low, high = (float(end) for end in torch.aminmax(weight.detach()))
    if low >= -_SAFE and high <= _SAFE:
        return
    largest = max(-low, high) if low == low else low
    if not torch.isfinite(weight).all():
        raise UserError(
            f"weights must be finite, got {largest:g} in {name}: rounding would make an ordinary integer of it; take "
            "another copy of the model"
        )
    quantized = quantize_weight(weight.detach(), spec)
    stored = [part for part in (quantized.scale, quantized.minimum) if part is not None]
    if not all(bool(part.isfinite().all()) for part in stored):
        raise UserError(
            f"weights must have scales within {spec.scale_dtype}, got {largest:,.0f} in {name}, too large for "
            f"{spec.bits} bits; use more bits or leave this layer as it is"
        )
