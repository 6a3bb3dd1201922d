"""`WeightQuantizer`: sees a weight as its integers will represent it, by ranges that follow it or are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgequant.quantization.arithmetic.affine import (
    QuantizedWeight,
    best_clipping_factor,
    fake_quantize_weight,
    fixed_zero_point,
    grouped,
    quantize,
    quantize_weight,
    simulated_weight,
    straight_through,
    weight_parameters,
)
from edgequant.quantization.arithmetic.grids import Grid, stored, stored_minimum
from edgequant.quantization.arithmetic.learned_steps import fake_quantize_learned, rounded_straight_through
from edgequant.quantization.arithmetic.range_search import choose_grid
from edgequant.quantization.layers.learned import LearnedParameters
from edgequant.quantization.scheme import WeightSpec


class WeightQuantizer(LearnedParameters):
    """Sees a weight as its integers will represent it.

    Scales and zero points follow each group's extremes as the weight moves, or, `learned`, are parameters of their own
    that start from the range with the least squared error, or from what a PTQ method chose. So it is in llama.cpp's
    layouts: any float16 scale and minimum are valid there, not those of its own rounding alone, and a learned q4_0
    scale keeps the sign that it starts with. Of a K-quant every group's scale and minimum learn, as they are stored in
    their super-block. A tied head and embedding share one.
    """

    relative_scale: nn.Parameter | None
    zero_point: nn.Parameter | None
    minimum_shift: nn.Parameter | None
    initial_scale: Tensor
    initial_minimum: Tensor | None
    _reuse = False
    _kept: Tensor | None = None

    def __init__(
        self, spec: WeightSpec, weight: Tensor, *, learned: bool, start: QuantizedWeight | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.learned = learned
        if start is not None and learned:
            self._learn_from(Grid(spec, stored(start.scale, spec), start.zero_point, start.minimum))
        elif learned:
            self._learn_from(self._least_error(weight))

    @torch.no_grad()
    def _least_error(self, weight: Tensor) -> Grid:
        if self.spec.layout != "affine":
            return choose_grid(weight.detach(), self.spec)
        groups = grouped(weight.detach().float(), self.spec)
        return Grid(self.spec, *weight_parameters(groups, self.spec, best_clipping_factor(groups, self.spec)))

    def _learn_from(self, grid: Grid) -> None:
        self.register_buffer("initial_scale", grid.scale)
        self.register_buffer("initial_minimum", grid.minimum)
        # The optimiser sees the scale relative to its start: one learning rate then suits every layer and model.
        starts = {"relative_scale": torch.ones_like(grid.scale), "zero_point": None, "minimum_shift": None}
        if self.spec.zero_point == "integer":
            starts["zero_point"] = grid.zero_point
        if grid.minimum is not None:
            starts["minimum_shift"] = torch.zeros_like(grid.minimum)
        for name, start in starts.items():
            if start is None:
                setattr(self, name, None)
            else:
                self.learn(name, start)

    def current_grid(self) -> Grid:
        """Scale, zero point and minimum as stored, with straight-through gradients."""
        assert self.relative_scale is not None
        scale = self.initial_scale * self.relative_scale
        scale = straight_through(scale, stored(scale.detach(), self.spec))
        if self.minimum_shift is not None and self.initial_minimum is not None:
            minimum = self.initial_minimum + self.minimum_shift * self.initial_scale
            minimum = straight_through(minimum, stored_minimum(minimum.detach(), self.spec))
            return Grid(self.spec, scale, minimum=minimum)
        if self.zero_point is None:
            return Grid(self.spec, scale, fixed_zero_point(scale, self.spec))
        return Grid(self.spec, scale, rounded_straight_through(self.zero_point).clamp(*self.spec.integer_range))

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """The simulated weight [out, in]; `rows` [n] says which rows of the whole these are."""
        if not self.learned:
            return self._simulated(weight, whole=rows is None)
        grid = self.current_grid()
        if rows is not None:
            grid = grid.of_rows(rows)
        groups, zero_point, origin = _above_origin(grouped(weight.float(), self.spec), grid)
        simulated = fake_quantize_learned(groups, grid.scale, zero_point, self.spec.integer_range)
        simulated = simulated if origin is None else simulated + origin
        return simulated.reshape(weight.shape).to(weight.dtype)

    def begin_step(self, *, reuse: bool) -> None:
        """Forget what was simulated; with `reuse`, simulate a whole weight once until the next call.

        The forward passes of one optimiser step all see the same weight. Learned scales need each pass's own gradient
        and are simulated every time.
        """
        self._reuse, self._kept = reuse, None

    def _simulated(self, weight: Tensor, *, whole: bool) -> Tensor:
        if torch.compiler.is_compiling() or not (self._reuse and whole):  # compiled, simulating costs next to nothing
            return fake_quantize_weight(weight, self.spec)
        if self._kept is None:
            kind = weight.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
            self._kept = simulated_weight(weight, self.spec).to(dtype)  # as the product will want it
        return straight_through(weight, self._kept)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> QuantizedWeight:
        """The integers that `forward` simulates."""
        if not self.learned:
            return quantize_weight(weight.detach(), self.spec)
        grid = self.current_grid()
        groups, zero_point, _ = _above_origin(grouped(weight.detach().float(), self.spec), grid)
        return grid.quantized(quantize(groups, grid.scale, zero_point, self.spec.integer_range))


def _above_origin(groups: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Groups above a grid's real origin, the integer that stands for it, and the origin: a minimum, or half a step."""
    if grid.minimum is not None:
        return groups - grid.minimum, torch.full_like(grid.scale, grid.spec.integer_range[0]), grid.minimum
    if grid.spec.has_half_levels:
        return groups - grid.scale / 2, None, grid.scale / 2
    return groups, grid.zero_point, None
