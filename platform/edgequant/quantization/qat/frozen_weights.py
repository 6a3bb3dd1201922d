"""Training of scales, zero points, norms and biases alone: the integers are those that training starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgequant.quantization.layers.fake_quantized import FakeQuantizedLayer, fake_quantized_layers
from edgequant.quantization.layers.frozen_weights import FrozenCodesQuantizer
from edgequant.quantization.layers.learned import LEARNED


@torch.no_grad()
def freeze_weights(model: nn.Module) -> None:
    """Fix, in place, the integers of a prepared model: scales, zero points, norms and biases train, nothing else.

    Weights are replaced by their packed integers, and updates before rounding end in these. A tied head stays tied.

    Args:
        model: after `convert.prepare` or `prepare_from_ptq`.
    """
    made: dict[int, tuple[Tensor, nn.Parameter, FrozenCodesQuantizer]] = {}
    layers = sorted(fake_quantized_layers(model).values(), key=lambda layer: layer.kind != "embedding")
    for layer in layers:
        old = layer.weight
        if id(old) not in made:  # the old weight is kept, so that no other gets its id
            made[id(old)] = (old, *_frozen(layer))
        _, layer.weight, layer.quantizer = made[id(old)]
        if layer.kind == "linear":
            layer.before_rounding = nn.Sequential()
    for name, parameter in model.named_parameters():
        trains = parameter.ndim < 2 or name.endswith(tuple(LEARNED))
        parameter.requires_grad_(trains and parameter.is_floating_point())


def _frozen(layer: FakeQuantizedLayer) -> tuple[nn.Parameter, FrozenCodesQuantizer]:
    weight = layer.real_weight
    start = layer.quantizer.quantized(weight)
    quantizer = FrozenCodesQuantizer(layer.spec, start, weight.shape[1], weight.dtype)
    return nn.Parameter(quantizer.packed_codes(start), requires_grad=False), quantizer
