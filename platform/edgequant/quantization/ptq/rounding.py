"""The steps that choose integers layer by layer: to the nearest, on the least-squares grid, with GPTQ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.affine import QuantizedWeight, quantize_weight
from edgequant.quantization.arithmetic.range_search import choose_grid, quantize_clipped
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLayer
from edgequant.quantization.layers.fixed_weights import fix_codes
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock
from edgequant.quantization.ptq.error_feedback import Drift
from edgequant.quantization.ptq.gptq import quantize_sharing_input
from edgequant.quantization.ptq.second_moments import SecondMoment
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import WeightSpec

Layers = Mapping[str, FakeQuantizedLayer]


class Rounding:
    """A step that chooses integers; a method of stage `round` gives at least one of `quantized` and `apply`.

    Attributes:
        uses_inputs: whether calibration text, where there is any, decides; else weights are rounded alone.
    """

    uses_inputs = False

    def quantized(self, weight: Tensor, spec: WeightSpec) -> QuantizedWeight:
        """The integers of a weight [out, in] whose inputs are not known: without text, or outside the blocks."""
        return quantize_clipped(weight, spec)

    def apply(self, block: CalibratedBlock) -> None:
        """Choose the integers of all layers of a block, by `fix_codes(layer, QuantizedWeight)`."""
        for layer in block.layers.values():
            fix_codes(layer, self.quantized(layer.weight.detach(), layer.spec))

    def quantize_layers(self, layers: Layers, moment: SecondMoment) -> dict[str, Tensor]:
        """Choose the integers of layers of equal bits that share an input.

        Args:
            moment: of the input over the calibration text, [in, in].

        Returns:
            By layer, the weights [out, in] that the integers were rounded from, where these are not its own.
        """
        for layer in layers.values():
            fix_codes(layer, self.quantized(layer.weight.detach(), layer.spec))
        return {}


class RoundToNearest(Rounding):
    """Every weight to the nearest integer of its group's range."""

    def quantized(self, weight: Tensor, spec: WeightSpec) -> QuantizedWeight:
        return quantize_weight(weight, spec)


class Clipping(Rounding):
    """Ranges with the least squared error, weighted by the mean squares of the layer's inputs where asked for."""

    def __init__(self, settings: PtqSettings) -> None:
        self.uses_inputs = settings.activation_weighted

    @torch.no_grad()
    def apply(self, block: CalibratedBlock) -> None:
        squares: dict[str, Tensor] = {}

        def add(name: str, inputs: Tensor) -> None:
            seen = inputs.square().sum(0)
            squares[name] = squares[name] + seen if name in squares else seen

        if self.uses_inputs:
            block.capture_inputs(list(block.layers), add)
        for name, layer in block.layers.items():
            fix_codes(layer, quantize_clipped(layer.weight, layer.spec, squares.get(name)))

    @torch.no_grad()
    def quantize_layers(self, layers: Layers, moment: SecondMoment) -> dict[str, Tensor]:
        for layer in layers.values():
            fix_codes(layer, quantize_clipped(layer.weight, layer.spec, moment.mean.diagonal()))
        return {}


class HessianRounding(Rounding):
    """Chooses integers by the mean x x^T of a layer's inputs, in the blocks and in an output head of its own.

    Group after group: each sees inputs behind the already quantised layers of its own block too. With
    `follows_floating` its weights are first moved to where these inputs give what the floating-point model gave.
    """

    uses_inputs = True
    follows_floating = False  # whether outputs aim at the floating-point model's, whatever the inputs have become

    @torch.no_grad()
    def apply(self, block: CalibratedBlock) -> None:
        first = [group.names[0] for group in block.groups]
        floating = block.floating_inputs(first) if self.follows_floating else {}
        for name, group in zip(first, block.groups, strict=True):
            layers = {name: block.layers[name] for name in group.names}
            if not self.follows_floating:
                self._quantize_alike(block, layers, block.second_moments([name])[name].moment())
                continue
            drift = block.drift(name, floating.pop(name))
            with aimed(layers, drift):
                self._quantize_alike(block, layers, drift.inputs.moment())

    def _quantize_alike(self, block: CalibratedBlock, layers: Layers, moment: SecondMoment) -> None:
        for bits in {layer.spec.bits: None for layer in layers.values()}:  # mixed precision: one width at a time
            alike = {name: layer for name, layer in layers.items() if layer.spec.bits == bits}
            block.rounded_from |= self.quantize_layers(alike, moment)

    @abstractmethod
    def quantize_layers(self, layers: Layers, moment: SecondMoment) -> dict[str, Tensor]: ...


@contextmanager
def aimed(layers: Layers, drift: Drift) -> Iterator[None]:
    """Inside, the weights of layers that share an input are those whose outputs come nearest to the floating-point
    model's; then they are as they were."""
    weights = [layer.weight.detach() for layer in layers.values()]
    kept = [weight.clone() for weight in weights]
    for weight, correction in zip(weights, drift.corrections(weights), strict=True):
        weight.add_(correction)
    try:
        yield
    finally:
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)


class Gptq(HessianRounding):
    """Column by column, the columns that remain make up for the error (Frantar et al. 2022, arXiv 2210.17323)."""

    def __init__(self, settings: PtqSettings) -> None:
        self.settings, self.follows_floating = settings, settings.asymmetric_calibration

    @torch.no_grad()
    def quantize_layers(self, layers: Layers, moment: SecondMoment) -> dict[str, Tensor]:
        settings = self.settings
        importance = moment.mean.diagonal() if settings.activation_weighted else None
        weights = [layer.weight.float() for layer in layers.values()]
        grids = [choose_grid(w, layer.spec, importance) for w, layer in zip(weights, layers.values(), strict=True)]
        options = {
            "dampening_frac": settings.dampening_frac,
            "act_order": settings.act_order,
            "refit": settings.refit_scales,
        }
        try:
            hessian = moment.without_chance(settings.shrinkage)
            found = quantize_sharing_input(weights, hessian, grids, **options)  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{', '.join(layers)} cannot be quantised by gptq: {error}") from error
        for layer, chosen in zip(layers.values(), found, strict=True):
            fix_codes(layer, chosen.quantized)
        return {name: chosen.compensated for name, chosen in zip(layers, found, strict=True)}
