"""Simulated quantisation whose scales and zero points are trained (LSQ+, Bhalgat et al. 2020, arXiv 2004.09576)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgequant.quantization.arithmetic.affine import dequantize, quantize

CACHED = 1 << 18  # weights


class _LearnedStep(torch.autograd.Function):
    """Forward: S (clamp(round(r/S) + Z) - Z). Backward: gradients for r, S and Z (LSQ+, equations 4 to 7)."""

    @staticmethod
    def forward(
        ctx: Any, groups: Tensor, scale: Tensor, zero_point: Tensor | None, integer_range: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(groups, scale, zero_point)
        ctx.integer_range = integer_range
        found = [dequantize(quantize(r, s, z, integer_range), s, z) for r, s, z in _parts(groups, scale, zero_point)]
        return found[0] if len(found) == 1 else torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        parts = _parts(gradients[0], *ctx.saved_tensors)
        found = [learned_step_gradients(g, r, s, z, ctx.integer_range) for g, r, s, z in parts]
        if len(found) == 1:
            return (*found[0], None)
        for_groups, for_scale, for_zero = zip(*found, strict=True)
        with_zero = for_zero[0] is not None
        return torch.cat(for_groups), torch.cat(for_scale), torch.cat(for_zero) if with_zero else None, None


def _parts(*tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """The same rows of all, as many at a time as a CPU's cache holds: all of a vocabulary's take four times as long."""
    first = tensors[0]
    assert first is not None
    rows = max(1, CACHED // max(1, first[0].numel())) if first.device.type == "cpu" and len(first) else len(first)
    if rows >= len(first):
        return [tensors]
    split = [None if one is None else one.split(rows) for one in tensors]
    count = len(first.split(rows))
    return [tuple(None if one is None else one[at] for one in split) for at in range(count)]


def learned_step_gradients(
    gradient: Tensor, groups: Tensor, scale: Tensor, zero_point: Tensor | None, integer_range: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a loss for r, S and Z, from that for the simulated values [rows, groups, group size].

    Inside the range the rounding error moves with S: d/dS = round(r/S) - r/S. A clipped value moves with S by the
    bound's distance from Z, and against Z by -S.
    """
    lowest, highest = integer_range
    steps = groups / scale
    shifted = torch.round(steps) if zero_point is None else torch.round(steps) + zero_point
    inside = (shifted >= lowest) & (shifted <= highest)
    bound = shifted.clamp(lowest, highest) - (0.0 if zero_point is None else zero_point)
    for_scale = (gradient * (bound - steps * inside)).sum(-1, keepdim=True)
    for_zero = None if zero_point is None else (gradient * ~inside).sum(-1, keepdim=True) * -scale
    return gradient * inside, for_scale, for_zero


def fake_quantize_learned(
    groups: Tensor, scale: Tensor, zero_point: Tensor | None, integer_range: tuple[int, int]
) -> Tensor:
    """Simulated quantisation whose scale and zero point learn too (LSQ+, Bhalgat et al. 2020, arXiv 2004.09576).

    Args:
        groups: [rows, groups, group size] float32.
        scale: [rows, groups, 1], positive, as stored.
        zero_point: [rows, groups, 1], integral, or None.
    """
    return _LearnedStep.apply(groups, scale, zero_point, integer_range)


class _LearnedRange(torch.autograd.Function):
    """As _LearnedStep with one scale and zero point for all values, which are kept in their own type until backward.

    Gradients for the two are divided by the square root of values times levels (LSQ, Esser et al. 2020, arXiv
    1902.08153, section 2.2), so that they are of the size of a weight's and clipping of the whole norm sees both.
    """

    @staticmethod
    def forward(ctx: Any, real: Tensor, scale: Tensor, zero_point: Tensor, integer_range: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(real, scale, zero_point)
        ctx.integer_range = integer_range
        values = real.float()
        return dequantize(quantize(values, scale, zero_point, integer_range), scale, zero_point).to(real.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        real, scale, zero_point = ctx.saved_tensors
        gradient = gradients[0].float().reshape(1, -1)
        for_real, for_scale, for_zero = learned_step_gradients(
            gradient, real.float().reshape(1, -1), scale, zero_point, ctx.integer_range
        )
        assert for_zero is not None
        share = (real.numel() * (ctx.integer_range[1] - ctx.integer_range[0])) ** -0.5
        for_scale, for_zero = for_scale.reshape(scale.shape), for_zero.reshape(zero_point.shape)
        return for_real.reshape(real.shape).to(real.dtype), for_scale * share, for_zero * share, None


def fake_quantize_learned_range(
    real: Tensor, scale: Tensor, zero_point: Tensor, integer_range: tuple[int, int]
) -> Tensor:
    """Simulated quantisation of activations of any shape, whose one scale and zero point learn too (LSQ+).

    Args:
        scale: scalar, float32, positive.
        zero_point: scalar, float32, integral.
    """
    return _LearnedRange.apply(real, scale, zero_point, integer_range)


def rounded_straight_through(values: Tensor) -> Tensor:
    """Nearest integers, with the gradient of `values`."""
    return values + (torch.round(values) - values).detach()
