"""The bytes of llama.cpp's K-quants, in super-blocks of 256 values (ggml-common.h, block_q4_K and block_q6_K)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.weight_spec import SUPER_BLOCK

Bytes = np.ndarray[Any, Any]


def super_blocks(packed: PackedWeight, row_order: Tensor | None = None) -> Bytes:
    """The super-blocks of a weight's rows, in the given order: [rows, super-blocks, bytes of one] uint8."""
    codes = packed.unpacked(row_order).codes.reshape(packed.rows, -1, SUPER_BLOCK)
    levels = codes.cpu().numpy() - np.int8(packed.spec.integer_range[0])
    scale, depth = packed.factors(row_order)
    if depth is None:
        parts = [*_six_bits(levels.view(np.uint8)), _bytes(scale.integers, np.int8), _half(scale.factor)]
    else:
        scales = _six_bit_scales(_bytes(scale.integers, np.uint8), _bytes(depth.integers, np.uint8))
        parts = [_half(scale.factor), _half(-depth.factor), scales, _four_bits(levels.view(np.uint8))]
    return np.concatenate(parts, axis=-1)


def _bytes(integers: Tensor, kind: type) -> Bytes:
    return integers.cpu().numpy().astype(kind).view(np.uint8)


def _half(factor: Tensor) -> Bytes:
    return np.ascontiguousarray(factor.cpu().numpy().astype(np.float16)).view(np.uint8)


def _four_bits(levels: Bytes) -> Bytes:
    """Of 64 values each, the first 32 in the low halves of 32 bytes, the others in the high ones."""
    pairs = levels.reshape(*levels.shape[:-1], 4, 2, 32)
    return (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).reshape(*levels.shape[:-1], 128)


def _six_bit_scales(scales: Bytes, minima: Bytes) -> Bytes:
    """Eight and eight six-bit numbers in 12 bytes: the last four of each have their upper two bits in the first."""
    first, last = np.stack((scales[..., :4], minima[..., :4])), np.stack((scales[..., 4:], minima[..., 4:]))
    upper, lower = first | ((last >> 4) << 6), last & 0xF
    return np.concatenate((upper[0], upper[1], lower[0] | (lower[1] << 4)), axis=-1)


def _six_bits(levels: Bytes) -> tuple[Bytes, Bytes]:
    """Of 128 values each, four bits of the first 64 in low halves and of the others in high ones; two bits of every
    32nd four in a byte."""
    shape = levels.shape[:-1]
    pairs, fours = (levels & 0xF).reshape(*shape, 2, 2, 64), (levels >> 4).reshape(*shape, 2, 4, 32)
    low = pairs[..., 0, :] | (pairs[..., 1, :] << 4)
    high = fours[..., 0, :] | (fours[..., 1, :] << 2) | (fours[..., 2, :] << 4) | (fours[..., 3, :] << 6)
    return low.reshape(*shape, 128), high.reshape(*shape, 64)
