"""float16 as a storage type of scales: its rounding as arithmetic on float32."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_NORMAL = 2.0**-14
_SUBNORMALS_PER_UNIT = 2.0**24
_LARGEST = 65504.0


def rounded_to_float16(values: Tensor) -> Tensor:
    """The nearest float16 numbers, ties to even (IEEE 754), as float32: `values.half().float()`, float32 in.

    Not written as casts because a compiler may drop a cast to a smaller type and back: Inductor does by default, and
    training would then see scales that no checkpoint can store.
    """
    bits = values.view(torch.int32)  # float16 keeps 10 of float32's 23 fraction bits
    normal = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
    normal = torch.where(normal.abs() > _LARGEST, torch.copysign(torch.full_like(normal, torch.inf), normal), normal)
    subnormal = torch.round(values * _SUBNORMALS_PER_UNIT) / _SUBNORMALS_PER_UNIT
    rounded = torch.where(values.abs() < _SMALLEST_NORMAL, subnormal, normal)
    return torch.where(values.isnan(), values, rounded)
