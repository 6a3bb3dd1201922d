"""Weights whose scale, zero point and, until it is fixed, rounding are parameters, all counted in integer steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgequant.quantization.arithmetic.affine import QuantizedWeight, grouped, quantize, straight_through
from edgequant.quantization.arithmetic.grids import Grid, stored, stored_minimum
from edgequant.quantization.arithmetic.learned_steps import fake_quantize_learned, rounded_straight_through
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear
from edgequant.quantization.layers.fixed_weights import fixed_codes_of
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.scheme import WeightSpec

MAX_ROUNDING_OFFSET = 0.5  # a code moves to a neighbor at most
HALF_STEP = 0.499
MAX_SCALE_CHANGE = 0.5  # a scale changes by at most this share
MAX_SHIFT = 1.0  # a zero point or minimum moves by at most so many steps


class LearnedRounding(WeightQuantizer):
    """A weight through a quantiser whose rounding, scale and zero point are parameters.

    code = round((w + V S0) / S) + Z. V, in steps of the scale S0 of the start, decides between neighbors; S and Z start
    from the grid that the integers were chosen on. Gradients pass the roundings straight through (LSQ+). Since all of
    them are counted in steps or shares of a scale, one learning rate suits every layer and model.
    """

    def __init__(self, base: Tensor, grid: Grid) -> None:
        """`base` [rows, groups, group size] is the weight to round."""
        super().__init__(grid.spec, base, learned=False)
        self.base, self.grid = base, grid
        self.offset = nn.Parameter(torch.zeros_like(self.base))
        self.stretch = nn.Parameter(torch.zeros_like(grid.scale))
        moves = grid.spec.zero_point != "none"
        self.shift = nn.Parameter(torch.zeros_like(grid.scale)) if moves else None

    @torch.no_grad()
    def clamp_(self, *, offset: float | None = None) -> None:
        """Bring scale and zero point back into their bounds, and V where it has one."""
        self.stretch.clamp_(-MAX_SCALE_CHANGE, MAX_SCALE_CHANGE)
        if offset is not None:
            self.offset.clamp_(-offset, offset)
        if self.shift is not None:
            self.shift.clamp_(-MAX_SHIFT, MAX_SHIFT)

    def current_grid(self) -> Grid:
        """The grid as stored, with straight-through gradients for scale and zero point."""
        return moved_grid(self.grid, self.stretch, self.shift)

    def _moved(self, grid: Grid) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The weight with V added and above its origin, the integer that stands for 0 there, and the origin."""
        base = torch.addcmul(self.base, self.offset, self.grid.scale)
        if grid.minimum is not None:
            return base - grid.minimum, torch.full_like(grid.scale, self.spec.integer_range[0]), grid.minimum
        if self.spec.has_half_levels:
            return base - grid.scale / 2, None, grid.scale / 2
        return base, grid.zero_point, None

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        grid = self.current_grid()
        base, zero, origin = self._moved(grid)
        values = fake_quantize_learned(base, grid.scale, zero, self.spec.integer_range)
        return (values if origin is None else values + origin).view_as(weight).to(weight.dtype)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> QuantizedWeight:
        grid = self.current_grid()
        base, zero, _ = self._moved(grid)
        return grid.quantized(quantize(base, grid.scale, zero, self.spec.integer_range))


class TunedGrid(WeightQuantizer):
    """Fixed integers whose scale and, where asked for or real, zero point are parameters; nothing else of it learns."""

    def __init__(self, spec: WeightSpec, chosen: QuantizedWeight, *, zero_points: bool) -> None:
        super().__init__(spec, torch.empty(0), learned=False)
        self.codes = chosen.codes
        self.grid = Grid(spec, chosen.scale, chosen.zero_point, chosen.minimum)
        self.stretch = nn.Parameter(torch.zeros_like(chosen.scale))
        moves = chosen.minimum is not None or (zero_points and spec.zero_point == "integer")
        self.shift = nn.Parameter(torch.zeros_like(chosen.scale)) if moves else None

    def current_grid(self) -> Grid:
        """The grid as stored, with straight-through gradients."""
        return moved_grid(self.grid, self.stretch, self.shift)

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        grid, codes = self.current_grid(), self.codes
        scale, offset = grid.scale, grid.offset
        if rows is not None and scale.shape[0] > 1:
            codes, scale, offset = codes[rows], scale[rows], offset[rows]
        elif rows is not None:  # one scale for the tensor
            codes = codes.view(-1, weight.shape[1])[rows].view(1, 1, -1)
        return _CodesTimesScale.apply(codes, scale, offset).view_as(weight).to(weight.dtype)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> QuantizedWeight:
        grid = self.current_grid()
        return QuantizedWeight(self.codes, grid.scale, grid.zero_point, grid.minimum)


class _CodesTimesScale(torch.autograd.Function):
    """codes * scale + offset; keeps the codes as bytes for the backward pass."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        return torch.addcmul(offset, codes.to(scale.dtype), scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        (codes,), (gradient,) = ctx.saved_tensors, gradients
        return None, (gradient * codes).sum(-1, keepdim=True), gradient.sum(-1, keepdim=True)


def moved_grid(grid: Grid, stretch: Tensor, shift: Tensor | None) -> Grid:
    """A grid with its scale times 1 + `stretch`, its zero point or minimum `shift` steps further, as it is stored."""
    zero_point, minimum = grid.zero_point, grid.minimum
    if shift is not None and zero_point is not None:
        zero_point = rounded_straight_through(zero_point + shift).clamp(*grid.spec.integer_range)
    if shift is not None and minimum is not None:
        minimum = shifted(minimum, shift * grid.scale, grid.spec)
    return Grid(grid.spec, stretched(grid, stretch), zero_point, minimum)


def stretched(grid: Grid, stretch: Tensor) -> Tensor:
    """The grid's scale times 1 + `stretch` as it is stored, with a straight-through gradient."""
    scale = grid.scale * (1 + stretch)
    return straight_through(scale, stored(scale.detach(), grid.spec))


def shifted(minimum: Tensor, distance: Tensor, spec: WeightSpec) -> Tensor:
    """A minimum moved by a distance, as it is stored, with a straight-through gradient."""
    moved = minimum + distance
    return straight_through(moved, stored_minimum(moved.detach(), spec))


@torch.no_grad()
def learned_rounding(layer: FakeQuantizedLinear, rounded_from: Tensor | None) -> LearnedRounding:
    """Starts at a layer's chosen integers: the weight [out, in] is brought to within half a step of them.

    Args:
        rounded_from: what the integers were rounded from, where that is not the layer's own weight.
    """
    chosen = codes_of(layer)
    grid = Grid(layer.spec, chosen.scale, chosen.zero_point, chosen.minimum)
    values = grid.values(chosen.codes.float())
    base = grouped((layer.weight if rounded_from is None else rounded_from).float(), layer.spec)
    half = HALF_STEP * grid.scale.abs()
    return LearnedRounding(values + torch.minimum(torch.maximum(base - values, -half), half), grid)


def codes_of(layer: FakeQuantizedLinear) -> QuantizedWeight:
    """The integers that a rounding step chose for a layer."""
    chosen = fixed_codes_of(layer)
    assert chosen is not None, "a rounding step comes first"
    return chosen
