"""Affine quantisation arithmetic as pure functions (Jacob et al. 2017, arXiv 1712.05877, section 2).

r = S (q - Z): a real number r, an integer q, a scale S > 0 and a zero point Z. Integers are signed here:
q in [-2^(b-1), 2^(b-1) - 1], so that 8-bit codes are int8. Symmetric specs have Z = 0, those of 2 bits Z = -1/2;
llama.cpp's q4_1 and q4_k have a real minimum instead. Weights [out, in] are seen as [rows, groups, group size], one
scale per row and group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgequant.quantization.arithmetic import ggml
from edgequant.quantization.arithmetic.few_levels import scale_of_spread
from edgequant.quantization.arithmetic.half_precision import rounded_to_float16
from edgequant.quantization.scheme import WeightSpec

_SMALLEST_FLOAT16 = 2.0**-24  # and the step between the numbers below the smallest normal one


class QuantizedWeight(NamedTuple):
    """Integers of a weight: codes [rows, groups, group size] int8; the others [rows, groups, 1] float32.

    Symmetric specs have no zero point, or one of -1/2 everywhere where they have half levels, which no checkpoint
    stores; `real` ones have a minimum instead of one, the value of the lowest code.
    Scale and minimum are already rounded to their storage type.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None = None
    minimum: Tensor | None = None


def grouped(weight: Tensor, spec: WeightSpec) -> Tensor:
    """View a weight [out, in] as [rows, groups, group size] according to the spec's granularity."""
    if spec.granularity == "tensor":
        return weight.reshape(1, 1, -1)
    if spec.granularity == "channel":
        return weight.reshape(weight.shape[0], 1, -1)
    return weight.unflatten(-1, (-1, spec.group_size or weight.shape[-1]))


def affine_parameters(low: Tensor, high: Tensor, integer_range: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale and integer zero point for real ranges [low, high] (Jacob et al. 2017, equation 1 and section 3).

    The range is widened to contain 0, which is then exactly representable, as zero padding and pruning need.

    Args:
        low, high: any equal shapes, finite.
        integer_range: lowest and highest integer.

    Returns:
        scale > 0 and zero point (integers as floats), both of low's shape.
    """
    lowest, highest = integer_range
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = _positive((high - low) / (highest - lowest))
    return scale, zero_point_for(low, scale, integer_range)


def zero_point_for(low: Tensor, scale: Tensor, integer_range: tuple[int, int]) -> Tensor:
    """The integer that stands for real 0 when `low` <= 0 is the lowest integer's value."""
    lowest, highest = integer_range
    return torch.round(lowest - low / scale).clamp(lowest, highest)


def symmetric_scale(low: Tensor, high: Tensor, integer_range: tuple[int, int]) -> Tensor:
    """The least scale at which a symmetric range holds [low, high], either end by its own half.

    torchao calls it symmetric without clipping error. Of -8 to 7, 7.5 or 7 for the larger magnitude, as others have it,
    would clip one end or leave a step of the other unused.
    """
    lowest, highest = integer_range
    return _positive(torch.maximum(low.clamp(max=0.0) / lowest, high.clamp(min=0.0) / highest))


def fixed_zero_point(scale: Tensor, spec: WeightSpec) -> Tensor | None:
    """Z of a symmetric spec: -1/2 for each scale where levels lie at halves, else None."""
    return torch.full_like(scale, -0.5) if spec.has_half_levels else None


def _positive(scale: Tensor) -> Tensor:
    """An all-zero group gets a scale of 1: every code is then 0 and nothing is divided by 0."""
    return torch.where(scale > 0, scale, 1.0)


def stored_scale(scale: Tensor, spec: WeightSpec) -> Tensor:
    """Round a scale to its storage type; returned as float32.

    float16 grows coarse below 2^-14, where 8-bit groups of small weights lie: scales are rounded up there, so that the
    range stays covered, and none becomes 0.
    """
    if spec.scale_dtype == "float32":
        return scale
    small = torch.finfo(torch.float16).smallest_normal
    subnormal = (scale / _SMALLEST_FLOAT16).ceil().clamp(min=1.0) * _SMALLEST_FLOAT16
    return torch.where(scale < small, subnormal, rounded_to_float16(scale))


def weight_parameters(groups: Tensor, spec: WeightSpec, shrink: float | Tensor = 1.0) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of each group from its minimum and maximum, times `shrink` (1: nothing is clipped).

    With few levels, whose least error clips, the scale follows from the group's spread instead.

    Args:
        groups: [rows, groups, group size] float32.
        shrink: a factor above 0, a number or [rows, groups, 1]: MSE clipping searches over it.
    """
    if spec.has_few_levels:
        scale = stored_scale((scale_of_spread(groups, spec) * shrink).clamp(min=_SMALLEST_FLOAT16), spec)
        return scale, fixed_zero_point(scale, spec)
    low, high = groups.amin(-1, keepdim=True) * shrink, groups.amax(-1, keepdim=True) * shrink
    if spec.zero_point == "none":
        return stored_scale(symmetric_scale(low, high, spec.integer_range), spec), None
    scale, _ = affine_parameters(low, high, spec.integer_range)
    scale = stored_scale(scale, spec)
    return scale, zero_point_for(low.clamp(max=0.0), scale, spec.integer_range)


def quantize(real: Tensor, scale: Tensor, zero_point: Tensor | None, integer_range: tuple[int, int]) -> Tensor:
    """q = clamp(round(r / S) + Z), as floats of integral value; ties go to the even integer (IEEE 754)."""
    codes = torch.round(real / scale)
    if zero_point is not None:
        codes = codes + zero_point
    return codes.clamp(*integer_range)


def nearest_codes(groups: Tensor, scale: Tensor, zero_point: Tensor | None, spec: WeightSpec) -> Tensor:
    """The nearest codes of [rows, groups, group size] by a spec, as floats of integral value."""
    if spec.has_half_levels:
        return quantize(groups - scale / 2, scale, None, spec.integer_range)
    return quantize(groups, scale, zero_point, spec.integer_range)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """r = S (q - Z), float32."""
    return (codes.float() if zero_point is None else codes - zero_point) * scale


def quantize_weight(weight: Tensor, spec: WeightSpec, shrink: float | Tensor = 1.0) -> QuantizedWeight:
    """Round a weight [out, in] to the nearest integers of its groups."""
    groups = grouped(weight.float(), spec)
    if spec.layout != "affine":
        codes, scale, minimum = ggml.quantize(groups, spec.layout)
        return QuantizedWeight(codes, scale, minimum=minimum)
    scale, zero_point = weight_parameters(groups, spec, shrink)
    return QuantizedWeight(nearest_codes(groups, scale, zero_point, spec).to(torch.int8), scale, zero_point)


def dequantize_weight(quantized: QuantizedWeight, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The real weight [out, in], float32, that the integers stand for."""
    if quantized.minimum is not None:
        lowest = -8  # q4_1 and q4_k, the layouts with a minimum
        return ((quantized.codes - lowest) * quantized.scale + quantized.minimum).reshape(shape)
    return dequantize(quantized.codes, quantized.scale, quantized.zero_point).reshape(shape)


# ---------------------------------------------------------------------------------- simulated quantisation (training)


class _StraightThrough(torch.autograd.Function):
    """Forward: any value computed without gradients. Backward: the gradient passes where `inside`, else stops."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, simulated: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(*([] if inside is None else [inside]))
        return simulated

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = gradients
        saved = ctx.saved_tensors
        return (gradient * saved[0] if saved else gradient), None, None


def straight_through(real: Tensor, simulated: Tensor, inside: Tensor | None = None) -> Tensor:
    """`simulated` with the gradient of `real` (Bengio et al. 2013, arXiv 1308.3432), blocked outside `inside`."""
    return _StraightThrough.apply(real, simulated, inside)


def fake_quantize(real: Tensor, scale: Tensor, zero_point: Tensor | None, integer_range: tuple[int, int]) -> Tensor:
    """S (clamp(round(r/S) + Z) - Z) with a straight-through gradient, zero where r is clipped (Jacob, eq. 12)."""
    with torch.no_grad():
        values = real.float()
        rounded = torch.round(values / scale) + (0.0 if zero_point is None else zero_point)
        simulated = dequantize(rounded.clamp(*integer_range), scale, zero_point).to(real.dtype)
        inside = (rounded >= integer_range[0]) & (rounded <= integer_range[1])
    return straight_through(real, simulated, inside)


def fake_quantize_weight(weight: Tensor, spec: WeightSpec) -> Tensor:
    """What `quantize_weight` and `dequantize_weight` make of a weight, with a straight-through gradient.

    Each group's own extremes set its range, so that nothing is clipped, or its spread where there are few levels, so
    that a clipped weight still moves them: the gradient passes unchanged.
    """
    return straight_through(weight, simulated_weight(weight, spec))


@torch.no_grad()
def simulated_weight(weight: Tensor, spec: WeightSpec) -> Tensor:
    """`fake_quantize_weight` without a gradient."""
    return dequantize_weight(quantize_weight(weight, spec), weight.shape).to(weight.dtype)


def best_clipping_factor(groups: Tensor, spec: WeightSpec, candidates: int = 20) -> Tensor:
    """For each group the factor on its range with the least squared error, [rows, groups, 1].

    From 0.5 to 1, from 0.2 for two bits, or from 0.5 to 1.6 where the range follows from the group's spread.
    """
    first = 1.6 if spec.has_few_levels else 1.0
    last = 0.2 if spec.bits == 2 and not spec.has_few_levels else 0.5
    best = torch.ones_like(groups[..., :1])
    least = torch.full_like(best, torch.inf)
    for factor in torch.linspace(first, last, candidates).tolist():
        scale, zero_point = weight_parameters(groups, spec, factor)
        codes = nearest_codes(groups, scale, zero_point, spec)
        error = (dequantize(codes, scale, zero_point) - groups).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, factor, best), torch.minimum(error, least)
    return best


def token_parameters(tokens: Tensor, integer_range: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale and zero point for each token: tokens [..., features] float32 to two [..., 1]."""
    if tokens.device.type == "cpu":  # of many tokens torch's aminmax takes about 20 times as long as both
        low, high = tokens.amin(-1, keepdim=True), tokens.amax(-1, keepdim=True)
    else:
        low, high = tokens.aminmax(dim=-1, keepdim=True)
    return affine_parameters(low, high, integer_range)


def fake_quantize_tokens(tokens: Tensor, integer_range: tuple[int, int]) -> Tensor:
    """Dynamic quantisation of activations, one range per token, with a straight-through gradient."""
    with torch.no_grad():
        values = tokens.float()
        scale, zero_point = token_parameters(values, integer_range)
        codes = quantize(values, scale, zero_point, integer_range)
        simulated = dequantize(codes, scale, zero_point).to(tokens.dtype)
    return straight_through(tokens, simulated)
