"""`WeightQuantizer`: sees a weight as its integers will represent it, by ranges that follow it or are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgequant.quantization.arithmetic.affine import (
    QuantizedWeight,
    best_clipping_factor,
    fake_quantize_learned,
    fake_quantize_weight,
    fixed_zero_point,
    grouped,
    nearest_codes,
    quantize_weight,
    rounded_straight_through,
    simulated_weight,
    stored_scale,
    straight_through,
    weight_parameters,
)
from edgequant.quantization.scheme import WeightSpec

# Weights move by fractions of their size at rates near 1e-4; a scale's ratio to its start and a zero point in integer
# steps are larger numbers, whose rates are these multiples of the weights'.
SCALE_LEARNING_RATE = 10.0
ZERO_POINT_LEARNING_RATE = 100.0


def _parameter(values: Tensor, learning_rate_factor: float) -> nn.Parameter:
    parameter = nn.Parameter(values)
    parameter.learning_rate_factor = learning_rate_factor  # type: ignore[attr-defined]  # read by the training loop
    parameter.is_scale = True  # type: ignore[attr-defined]
    return parameter


class WeightQuantizer(nn.Module):
    """Sees a weight as its integers will represent it.

    Scales and zero points follow each group's extremes as the weight moves, or, `learned`, are parameters of their own
    that start from the range with the least squared error, or from what a PTQ method chose. A tied head and embedding
    share one.
    """

    relative_scale: nn.Parameter | None
    zero_point: nn.Parameter | None
    initial_scale: Tensor
    _reuse = False
    _kept: Tensor | None = None

    def __init__(
        self, spec: WeightSpec, weight: Tensor, *, learned: bool, start: QuantizedWeight | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.learned = learned and spec.layout == "affine"
        if self.learned:
            self._learn_from(*(self._least_error(weight) if start is None else (start.scale, start.zero_point)))

    @torch.no_grad()
    def _least_error(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        groups = grouped(weight.detach().float(), self.spec)
        return weight_parameters(groups, self.spec, best_clipping_factor(groups, self.spec))

    def _learn_from(self, scale: Tensor, zero_point: Tensor | None) -> None:
        self.register_buffer("initial_scale", scale)
        # The optimiser sees the scale relative to its start: one learning rate then suits every layer and model.
        self.relative_scale = _parameter(torch.ones_like(scale), SCALE_LEARNING_RATE)
        fixed = self.spec.zero_point == "none"
        self.zero_point = None if fixed or zero_point is None else _parameter(zero_point, ZERO_POINT_LEARNING_RATE)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy: torch copies a parameter without its attributes, and scales would train at the weights' rate."""
        super().__setstate__(state)
        for name, factor in (("relative_scale", SCALE_LEARNING_RATE), ("zero_point", ZERO_POINT_LEARNING_RATE)):
            if self._parameters.get(name) is not None:
                self._parameters[name].learning_rate_factor = factor  # type: ignore[union-attr]

    def current_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Scale, as stored, and zero point, integral where it is learned; both with straight-through gradients."""
        assert self.relative_scale is not None
        scale = self.initial_scale * self.relative_scale
        scale = scale + (stored_scale(scale.detach(), self.spec) - scale).detach()
        if self.zero_point is None:
            return scale, fixed_zero_point(scale, self.spec)
        return scale, rounded_straight_through(self.zero_point).clamp(*self.spec.integer_range)

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """The simulated weight [out, in]; `rows` [n] says which rows of the whole these are."""
        if not self.learned:
            return self._simulated(weight, whole=rows is None)
        scale, zero_point = self.current_parameters()
        if rows is not None:
            scale, zero_point = scale[rows], None if zero_point is None else zero_point[rows]
        groups, bounds = grouped(weight.float(), self.spec), self.spec.integer_range
        if self.spec.has_half_levels:
            simulated = fake_quantize_learned(groups - scale / 2, scale, None, bounds) + scale / 2
        else:
            simulated = fake_quantize_learned(groups, scale, zero_point, bounds)
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
        scale, zero_point = self.current_parameters()
        codes = nearest_codes(grouped(weight.detach().float(), self.spec), scale, zero_point, self.spec)
        return QuantizedWeight(codes.to(torch.int8), scale, zero_point)
