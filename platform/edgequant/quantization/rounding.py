"""The steps that choose a block's integers layer by layer: to the nearest, on the least-squares grid, with GPTQ."""

from __future__ import annotations

import torch
from torch import Tensor

from edgequant.errors import UserError
from edgequant.quantization.affine import quantize_weight
from edgequant.quantization.calibrated_block import CalibratedBlock
from edgequant.quantization.chosen_weights import choose
from edgequant.quantization.clipping import choose_grid, quantize_clipped
from edgequant.quantization.fake_quantization import FakeQuantizedLinear
from edgequant.quantization.gptq import quantize_sharing_input
from edgequant.quantization.ptq_settings import PtqSettings


class RoundToNearest:
    """Every weight to the nearest integer of its group's range."""

    def apply(self, block: CalibratedBlock) -> None:
        for layer in block.layers.values():
            choose(layer, quantize_weight(layer.weight.detach(), layer.spec))


class Clipping:
    """Ranges with the least squared error, weighted by the mean squares of the layer's inputs where asked for."""

    def __init__(self, settings: PtqSettings) -> None:
        self.weighted = settings.activation_weighted

    @torch.no_grad()
    def apply(self, block: CalibratedBlock) -> None:
        squares: dict[str, Tensor] = {}

        def add(name: str, inputs: Tensor) -> None:
            seen = inputs.square().sum(0)
            squares[name] = squares[name] + seen if name in squares else seen

        if self.weighted:
            block.watch(list(block.layers), add)
        for name, layer in block.layers.items():
            choose(layer, quantize_clipped(layer.weight, layer.spec, squares.get(name)))


class Gptq:
    """GPTQ, group after group: each sees inputs behind the already quantised layers of its own block too.

    `compensated` keeps, by layer, the weights that the integers of the last block were rounded from.
    """

    def __init__(self, settings: PtqSettings) -> None:
        self.settings = settings
        self.compensated: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self, block: CalibratedBlock) -> None:
        self.compensated = {}
        for group in block.groups:
            hessian = block.hessians(group.names[:1])[group.names[0]]
            layers = {name: block.layers[name] for name in group.names}
            for bits in {layer.spec.bits: None for layer in layers.values()}:  # mixed precision: one width at a time
                self.quantize_layers({n: layer for n, layer in layers.items() if layer.spec.bits == bits}, hessian)

    @torch.no_grad()
    def quantize_layers(self, layers: dict[str, FakeQuantizedLinear], hessian: Tensor) -> None:
        """Choose the integers of layers of equal bits that share an input, whose mean x x^T is `hessian`."""
        settings = self.settings
        importance = hessian.diagonal() if settings.activation_weighted else None
        weights = [layer.weight.float() for layer in layers.values()]
        grids = [choose_grid(w, layer.spec, importance) for w, layer in zip(weights, layers.values(), strict=True)]
        options = {"damping": settings.damping, "act_order": settings.act_order, "refit": settings.refit_scales}
        try:
            found = quantize_sharing_input(weights, hessian, grids, **options)  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{', '.join(layers)} cannot be quantised by gptq: {error}") from error
        for (name, layer), chosen in zip(layers.items(), found, strict=True):
            choose(layer, chosen.quantized)
            self.compensated[name] = chosen.compensated
