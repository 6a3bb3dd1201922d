"""`signround`: rounding and ranges learned against a decoder block's output.

The family of AutoRound (Cheng et al. 2023, arXiv 2309.05516): signed gradient descent on a rounding offset per weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgequant.quantization.arithmetic.affine import QuantizedWeight, grouped, rounded_straight_through
from edgequant.quantization.arithmetic.grids import Grid, stored
from edgequant.quantization.arithmetic.half_precision import rounded_to_float16
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear
from edgequant.quantization.layers.fixed_weights import fix_codes, fixed_codes_of
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock
from edgequant.quantization.ptq.settings import PtqSettings

MAX_ROUNDING_OFFSET = 0.5  # a code moves to a neighbour at most
HALF_STEP = 0.499
MAX_SCALE_CHANGE = 0.5  # a scale changes by at most this share
MAX_SHIFT = 1.0  # a zero point or minimum moves by at most so many steps


class LearnedRounding(WeightQuantizer):
    """A weight through a quantiser whose rounding, scale and zero point are parameters.

    code = round(w / S + V) + Z: V in [-1/2, 1/2] decides between neighbours, S and Z start from the grid that the
    integers were chosen on. Gradients pass the roundings straight through.
    """

    def __init__(self, base: Tensor, grid: Grid) -> None:
        """`base` [rows, groups, group size] is the weight to round."""
        super().__init__(grid.spec, base, learned=False)
        self.base, self.grid = base, grid
        self.offset = nn.Parameter(torch.zeros_like(self.base))
        self.stretch = nn.Parameter(torch.zeros_like(grid.scale))
        moves = grid.spec.zero_point != "none"
        self.shift = nn.Parameter(torch.zeros_like(grid.scale)) if moves else None

    def clamp_(self) -> None:
        """Bring the parameters back into their bounds."""
        self.offset.data.clamp_(-MAX_ROUNDING_OFFSET, MAX_ROUNDING_OFFSET)
        self.stretch.data.clamp_(-MAX_SCALE_CHANGE, MAX_SCALE_CHANGE)
        if self.shift is not None:
            self.shift.data.clamp_(-MAX_SHIFT, MAX_SHIFT)

    def current_grid(self) -> Grid:
        """The grid as stored, with straight-through gradients for scale and zero point."""
        grid, spec = self.grid, self.grid.spec
        scale = grid.scale * (1 + self.stretch)
        scale = scale + (stored(scale.detach(), spec) - scale).detach()
        zero_point, minimum = grid.zero_point, grid.minimum
        if zero_point is not None and self.shift is not None:
            zero_point = rounded_straight_through(zero_point + self.shift).clamp(*spec.integer_range)
        if minimum is not None:
            assert self.shift is not None
            moved = minimum + self.shift * grid.scale
            minimum = moved + (rounded_to_float16(moved.detach()) - moved).detach()
        return Grid(spec, scale, zero_point, minimum)

    def _codes(self, grid: Grid) -> Tensor:
        steps = (self.base - grid.offset) / grid.scale + self.offset
        return rounded_straight_through(steps).clamp(*self.spec.integer_range)

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        grid = self.current_grid()
        return grid.values(self._codes(grid)).view_as(weight).to(weight.dtype)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> QuantizedWeight:
        grid = self.current_grid()
        return grid.quantized(self._codes(grid))


class BlockRounding:
    """Sign-SGD on every layer's rounding and ranges at once, minimising the block's squared output error.

    The inputs are those behind quantised predecessors, the targets those of the floating-point model, so that a block
    also makes up for the ones before it. What was learned is kept only if it beats the start on all calibration
    batches.
    """

    def __init__(self, settings: PtqSettings) -> None:
        self.settings = settings

    def apply(self, block: CalibratedBlock) -> None:
        before = _loss(block)
        starts = {name: _codes_of(layer) for name, layer in block.layers.items()}
        learned = {name: _learned_rounding(layer, block.rounded_from.get(name)) for name, layer in block.layers.items()}
        for name, layer in block.layers.items():
            layer.quantizer = learned[name]
        self._learn(block, list(learned.values()))
        better = _loss(block) < before
        for name, layer in block.layers.items():
            fix_codes(layer, learned[name].quantized(layer.weight) if better else starts[name])

    def _learn(self, block: CalibratedBlock, learned: list[LearnedRounding]) -> None:
        steps = self.settings.signround_steps
        parameters = [parameter for quantizer in learned for parameter in quantizer.parameters()]
        first_rate = self.settings.signround_learning_rate or 1 / steps
        generator = torch.Generator().manual_seed(0)
        for step in range(steps):
            batch = int(torch.randint(len(block.inputs), (1,), generator=generator))
            with torch.enable_grad():
                target = block.stream.fetch(block.targets[batch])
                loss = (block.run(batch).float() - target.float()).square().mean()
                gradients = torch.autograd.grad(loss, parameters)
            rate = first_rate * (1 - step / steps)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.data.sub_(gradient.sign_(), alpha=rate)
            for quantizer in learned:
                quantizer.clamp_()


@torch.no_grad()
def _learned_rounding(layer: FakeQuantizedLinear, rounded_from: Tensor | None) -> LearnedRounding:
    """Starts at the chosen integers: the weight is brought to within half a step of them."""
    chosen = _codes_of(layer)
    grid = Grid(layer.spec, chosen.scale, chosen.zero_point, chosen.minimum)
    values = grid.values(chosen.codes.float())
    base = grouped((layer.weight if rounded_from is None else rounded_from).float(), layer.spec)
    half = HALF_STEP * grid.scale.abs()
    return LearnedRounding(values + torch.minimum(torch.maximum(base - values, -half), half), grid)


def _codes_of(layer: FakeQuantizedLinear) -> QuantizedWeight:
    chosen = fixed_codes_of(layer)
    assert chosen is not None, "a rounding step comes first"
    return chosen


def _loss(block: CalibratedBlock) -> float:
    pairs = zip(block.outputs(), block.targets, strict=True)
    return sum(float((output.float() - block.stream.fetch(target).float()).square().mean()) for output, target in pairs)
