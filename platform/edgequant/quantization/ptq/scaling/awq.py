"""`awq`: weight columns that meet large inputs are scaled up, so that rounding hurts them less.

Lin et al. 2023, arXiv 2306.00978.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgequant.quantization.arithmetic.affine import grouped
from edgequant.quantization.arithmetic.grids import grid_of_extremes
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock
from edgequant.quantization.ptq.gptq import output_error
from edgequant.quantization.ptq.scaling.equivalent_scaling import ScalingPair, find_scaling_pairs


class ActivationAwareScaling:
    """For each foldable group of linears, the s = (mean |x|)^alpha with the least output error after rounding.

    Errors are measured on the linears' outputs through the mean of x x^T, once per block for all alphas.
    """

    def __init__(self, alphas: int = 20) -> None:
        self.alphas = torch.linspace(0, 1, alphas + 1).tolist()

    def apply(self, block: CalibratedBlock) -> None:
        pairs = find_scaling_pairs(block)
        firsts = [group.names[0] for group, _ in pairs]
        magnitudes: dict[str, Tensor] = {name: torch.zeros(()) for name in firsts}

        def add(name: str, inputs: Tensor) -> None:
            magnitudes[name] = magnitudes[name].to(inputs.device) + inputs.abs().mean(0)

        block.capture_inputs(firsts, add)
        sums = block.second_moments(firsts)
        for group, pair in pairs:
            name = group.names[0]
            pair.apply(block, self._best_scale(block, pair, magnitudes[name] / len(block.inputs), sums[name].mean))

    def _best_scale(self, block: CalibratedBlock, pair: ScalingPair, magnitude: Tensor, hessian: Tensor) -> Tensor:
        layers = [block.layers[name] for name in pair.names]
        base = pair.gather(magnitude).clamp(min=1e-6)
        candidates = [_centered(base**alpha) for alpha in self.alphas]
        errors = [sum(_rounding_error(layer, pair.spread(scale), hessian) for layer in layers) for scale in candidates]
        return candidates[min(range(len(errors)), key=errors.__getitem__)]


def _centered(scale: Tensor) -> Tensor:
    """Scales around 1, within three orders of magnitude either way: what absorbs them stays well conditioned."""
    return (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-3, 1e3)


@torch.no_grad()
def _rounding_error(layer: FakeQuantizedLinear, scale: Tensor, hessian: Tensor) -> float:
    weight = layer.weight.float()
    groups = grouped(weight * scale, layer.spec)
    grid = grid_of_extremes(groups, layer.spec)
    rounded = grid.values(grid.codes(groups)).view_as(weight) / scale
    return output_error(rounded - weight, hessian) * len(weight)
