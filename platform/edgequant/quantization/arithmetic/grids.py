"""`Grid`: the real numbers that a group of weights can become, whichever scheme or llama.cpp layout they follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgequant.quantization.arithmetic import ggml
from edgequant.quantization.arithmetic.affine import (
    QuantizedWeight,
    affine_parameters,
    fixed_zero_point,
    grouped,
    stored_scale,
    symmetric_scale,
    weight_parameters,
    zero_point_for,
)
from edgequant.quantization.arithmetic.half_precision import rounded_to_float16
from edgequant.quantization.arithmetic.super_blocks import minimum_factors, scale_factors
from edgequant.quantization.scheme import WeightSpec


@dataclass(frozen=True)
class Grid:
    """value = scale * code + offset, code an integer within the spec's range.

    `scale` and, where the spec has them, `zero_point` or `minimum` are [rows, groups, 1] float32, representable in
    their storage types. A q4_0 or q6_k scale may be negative. The zero point of a symmetric spec is None or, where
    levels lie at halves, -1/2, and stays.
    """

    spec: WeightSpec
    scale: Tensor
    zero_point: Tensor | None = None
    minimum: Tensor | None = None

    @property
    def offset(self) -> Tensor:
        """The value of code 0."""
        if self.minimum is not None:
            return self.minimum - self.spec.integer_range[0] * self.scale
        return torch.zeros_like(self.scale) if self.zero_point is None else -self.scale * self.zero_point

    def codes(self, groups: Tensor) -> Tensor:
        """The nearest codes of [rows, groups, group size], integral floats."""
        return torch.round((groups - self.offset) / self.scale).clamp(*self.spec.integer_range)

    def values(self, codes: Tensor) -> Tensor:
        """The real numbers that codes stand for."""
        return codes * self.scale + self.offset

    def quantized(self, codes: Tensor) -> QuantizedWeight:
        """Codes [rows, groups, group size] with this grid, as `convert` takes them."""
        return QuantizedWeight(codes.to(torch.int8), self.scale, self.zero_point, self.minimum)

    def with_scale(self, scale: Tensor) -> Grid:
        """The same zero point or minimum under another scale, rounded to its storage type."""
        return replace(self, scale=stored(scale, self.spec))

    def of_rows(self, rows: Tensor) -> Grid:
        """The grid of some rows of the weight, an index tensor [n]; one scale for the tensor is every row's."""
        if self.scale.shape[0] == 1:
            return self
        parts = (None if part is None else part[rows] for part in (self.scale, self.zero_point, self.minimum))
        return Grid(self.spec, *parts)  # type: ignore[arg-type]  # the scale is there

    def columns(self, values: Tensor, features: int) -> Tensor:
        """One of this grid's tensors [rows, groups, 1] spread over the input features: [rows or 1, features]."""
        rows, groups, _ = values.shape
        return values.expand(rows, groups, features // groups).reshape(rows, features)


def stored(scale: Tensor, spec: WeightSpec) -> Tensor:
    """A scale as it is stored, never 0; llama.cpp's may be negative. A K-quant's are stored super-block by super-block.

    What is stored already stays as it is.
    """
    if spec.layout == "affine":
        return stored_scale(scale, spec)
    if spec.is_k_quant:
        return scale_factors(scale, spec).values()
    half = rounded_to_float16(scale)
    return torch.where(half == 0, torch.ones_like(half), half)


def stored_minimum(minimum: Tensor, spec: WeightSpec) -> Tensor:
    """A minimum as it is stored; q4_k's is at most 0, and what is stored already stays as it is."""
    return minimum_factors(minimum, spec).values() if spec.is_k_quant else rounded_to_float16(minimum)


def grid_of_extremes(groups: Tensor, spec: WeightSpec) -> Grid:
    """The grid of round to nearest: each group's range is that of its values [rows, groups, group size]."""
    if spec.layout != "affine":
        _, scale, minimum = ggml.quantize(groups, spec.layout)
        return Grid(spec, stored(scale, spec), minimum=minimum)
    scale, zero_point = weight_parameters(groups, spec)
    return Grid(spec, scale, zero_point)


def grid_of_range(low: Tensor, high: Tensor, spec: WeightSpec, *, flipped: bool = False) -> Grid:
    """The grid that covers [low, high], both [rows, groups, 1].

    Args:
        flipped: q4_0 only, whose codes reach one step further below than above: which end gets the longer half.
    """
    if spec.layout == "q4_0":
        reach = torch.maximum(low.abs(), high.abs()) / 8
        return Grid(spec, stored(reach if flipped else -reach, spec))
    if spec.zero_point == "real":
        minimum = stored_minimum(low, spec)
        steps = spec.integer_range[1] - spec.integer_range[0]
        return Grid(spec, stored((high - low) / steps, spec), minimum=minimum)
    if spec.zero_point == "none":
        return _symmetric_grid(symmetric_scale(low, high, spec.integer_range), spec)
    scale = stored(affine_parameters(low, high, spec.integer_range)[0], spec)
    return Grid(spec, scale, zero_point_for(low.clamp(max=0.0), scale, spec.integer_range))


def _symmetric_grid(scale: Tensor, spec: WeightSpec) -> Grid:
    scale = stored(scale, spec)
    return Grid(spec, scale, fixed_zero_point(scale, spec))


def spread_importance(importance: Tensor, weight: Tensor, spec: WeightSpec) -> Tensor:
    """One number per input feature [in] as it lies beside the weight's groups."""
    if spec.granularity == "tensor":
        return grouped(importance.expand_as(weight), spec)
    return grouped(importance[None], spec)
