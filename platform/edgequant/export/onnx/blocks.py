"""A checkpoint's integers as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them: blocks along the inputs.

Both compute (code - zero point) * scale with codes of 2, 4 or 8 bits from 0 on, low bits first, in blocks of a power of
two of at least 16 inputs; without zero points it is the middle of the range. Sources: the operators' schemas, which
onnxruntime's ContribOperators describes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgequant.export.onnx.expressible import block_size, container_of
from edgequant.quantization.layers.packed_weight import PackedWeight

Array = np.ndarray[Any, Any]


class Blocks(NamedTuple):
    """A weight [rows, features] in blocks.

    Attributes:
        bits: 2, 4 or 8: the width of the integers or the next above it.
        size: inputs of a block.
        codes: uint8 [rows, blocks, size * bits / 8].
        scale: [rows or 1, groups, 1], as the checkpoint stores it; each stands for `repeats` blocks.
        zero_points: uint8 [rows, bytes], packed as the codes; None: 2^(bits - 1).
    """

    bits: int
    size: int
    codes: Array
    scale: Tensor
    repeats: int
    zero_points: Array | None

    @property
    def per_row(self) -> int:
        """Blocks of a row."""
        return int(self.codes.shape[1])


def blocks_of(packed: PackedWeight) -> Blocks:
    """Re-lay integers, scales and zero points; no number changes.

    Raises:
        ValueError: groups that do not consist of blocks, which `expressible` refuses.
    """
    packed = packed.at_whole_levels()
    size, bits = block_size(packed.spec, packed.features), container_of(packed.spec.bits)
    if size is None:
        raise ValueError(f"groups of {packed.spec.group_size}")
    weight, middle = packed.unpacked(), 2 ** (bits - 1)
    repeats = -(-(packed.spec.group_size or packed.features) // size)
    codes = weight.codes.reshape(packed.rows, packed.features).to(torch.int16) + middle
    codes = functional.pad(codes, (0, -packed.features % size), value=middle).view(packed.rows, -1, size)
    zero_points = None
    if weight.zero_point is not None:
        shifted = weight.zero_point[..., 0].to(torch.int16) + middle
        zero_points = _bits(shifted.expand(packed.rows, -1).repeat_interleave(repeats, 1), bits)
    return Blocks(bits, size, _bits(codes, bits), packed.scale[..., None].cpu(), repeats, zero_points)


def _bits(values: Tensor, bits: int) -> Array:
    """Pack values [..., n] from 0 on into bytes [..., ceil(n * bits / 8)], low bits first."""
    per_byte = 8 // bits
    padded = functional.pad(values, (0, -values.shape[-1] % per_byte)).unflatten(-1, (-1, per_byte))
    packed: Array = (
        (padded << (bits * torch.arange(per_byte, device=values.device))).sum(-1).to(torch.uint8).cpu().numpy()
    )
    return packed
