"""Scales of llama.cpp's K-quants: small integers times one float16 factor of a super-block of 256 inputs.

q4_k has eight groups of 32 in it, whose scales and minima are 0 to 63 times a factor each; q6_k sixteen of 16, whose
scales are -128 to 127 times theirs (ggml-common.h, block_q4_K and block_q6_K). Elsewhere a scale is the product, which
float32 holds exactly: 11 bits times 8. It says factor and integer again, since the largest scale of a super-block is
always the highest integer, or, where float16's steps are coarse, the highest that fits; so storing what was stored
changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edgequant.quantization.arithmetic.half_precision import rounded_to_float16
from edgequant.quantization.weight_spec import SUPER_BLOCK, WeightSpec

HIGHEST_Q4 = 63  # of q4_k's scales and minima, six bits
LOWEST_Q6, HIGHEST_Q6 = -128, 127  # of q6_k's scales, which the largest takes with its sign
_SMALLEST_NORMAL, _STEPS_PER_UNIT = 2.0**-14, 2.0**24
_TOLERANCE = 1e-4  # of a step: a division that compiled code rounds otherwise counts as exact


class Factors(NamedTuple):
    """What numbers [rows, groups, 1] are stored as: number = factor * integer.

    `factor` [rows, super-blocks, 1] is representable in float16, `integers` [rows, super-blocks, groups in one] are
    integral floats.
    """

    factor: Tensor
    integers: Tensor

    def values(self) -> Tensor:
        """The numbers, [rows, groups, 1]."""
        return (self.factor * self.integers).flatten(1)[..., None]


def scale_factors(scale: Tensor, spec: WeightSpec) -> Factors:
    """The nearest that a K-quant can store of scales [rows, groups, 1], none of them 0; q4_k's are positive."""
    scales = _by_super_block(scale, spec)
    if spec.layout == "q4_k":
        scales = torch.where(scales.amax(-1, keepdim=True) > 0, scales, HIGHEST_Q4 / 64)  # of zeros alone: near 1
        largest = scales.amax(-1, keepdim=True)
        factor = _half_from_above(largest / HIGHEST_Q4)
        return Factors(factor, _integers(scales, largest, factor).clamp(1, HIGHEST_Q4))
    scales = torch.where((scales != 0).any(-1, keepdim=True), scales, 1.0)
    largest = scales.gather(-1, scales.abs().argmax(-1, keepdim=True))
    factor = _half_from_above(largest.abs() / -LOWEST_Q6).copysign(-largest)
    steps = scales / factor
    integers = torch.where(scales == largest, (steps + _TOLERANCE).floor(), torch.round(steps))
    nonzero = torch.where(integers == 0, torch.where(steps < 0, -1.0, 1.0), integers)
    return Factors(factor, nonzero.clamp(LOWEST_Q6, HIGHEST_Q6))


def minimum_factors(minimum: Tensor, spec: WeightSpec) -> Factors:
    """The nearest that q4_k can store of minima [rows, groups, 1], at most 0: the factor is negative or -0."""
    depths = -_by_super_block(minimum, spec).clamp(max=0.0)
    largest = depths.amax(-1, keepdim=True)
    factor = torch.where(largest > 0, _half_from_above(largest / HIGHEST_Q4), 0.0)
    integers = _integers(depths, largest, torch.where(factor > 0, factor, torch.ones_like(factor)))
    return Factors(-factor, integers.clamp(0, HIGHEST_Q4))


def _by_super_block(values: Tensor, spec: WeightSpec) -> Tensor:
    return values.reshape(values.shape[0], -1, SUPER_BLOCK // (spec.group_size or SUPER_BLOCK))


def _integers(values: Tensor, largest: Tensor, factor: Tensor) -> Tensor:
    """The nearest; the largest rounds up, so that it gives the same factor when it is stored again."""
    steps = values / factor
    return torch.where(values == largest, (steps - _TOLERANCE).ceil(), torch.round(steps))


def _half_from_above(values: Tensor) -> Tensor:
    """Positive numbers in float16; below its smallest normal one, where its steps are coarse, rounded up."""
    subnormal = (values * _STEPS_PER_UNIT - _TOLERANCE).ceil().clamp(min=1.0) / _STEPS_PER_UNIT
    return torch.where(values < _SMALLEST_NORMAL, subnormal, rounded_to_float16(values))
