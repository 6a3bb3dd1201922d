"""How far two right computations of one quantised model may be apart: what follows from arithmetic, not from a CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from edgequant.quantization.layers.integer import IntegerLinear


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits


def integer_linears(model: Any) -> dict[str, IntegerLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, IntegerLinear)}


class Pass(NamedTuple):
    """One forward pass: the logits, and input and output of each linear."""

    logits: torch.Tensor
    linears: dict[str, tuple[torch.Tensor, torch.Tensor]]


def linear_by_linear(model: Any, ids: torch.Tensor) -> Pass:
    """What goes in and out of every linear, floating, simulated or integer."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def remember(name: str) -> Any:
        return lambda _, inputs, output: seen.update({name: (inputs[0], output)})

    linears = [(n, module) for n, module in model.named_modules() if isinstance(module, nn.Linear | IntegerLinear)]
    hooks = [module.register_forward_hook(remember(name)) for name, module in linears]
    try:
        return Pass(logits(model, ids), seen)
    finally:
        for hook in hooks:
            hook.remove()


def assert_same_linear_by_linear(
    passed: Pass, other: Any, ids: torch.Tensor, layers: dict[str, IntegerLinear] | None = None
) -> None:
    """Linears agree on the same input but for near-ties and float32 rounding; everything between them, bit for bit.

    `layers` are those in integers (default: `other`'s). Each of `other` is made to pass on what the first model's gave:
    what one near-tie does to a whole network differs by CPU and has no bound, what it does to one product has.
    """
    layers = layers or integer_linears(other)
    left = set(layers)

    def check(name: str, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        left.discard(name)
        input, expected = passed.linears[name]
        assert torch.equal(given, input), f"{name}: something before it computes otherwise"
        excess = (output - expected).abs() - largest_difference(layers[name], input)
        assert excess.max() <= 0, f"{name}: {excess.max():.3g} beyond near-ties and rounding"
        return expected

    hooks = [
        other.get_submodule(name).register_forward_hook(lambda _, i, out, name=name: check(name, i[0], out))
        for name in layers
    ]
    try:
        assert torch.equal(logits(other, ids), passed.logits) and layers and not left
    finally:
        for hook in hooks:
            hook.remove()


def largest_difference(layer: IntegerLinear, input: torch.Tensor) -> torch.Tensor:
    """By how much two right ways to compute a linear may differ for the same input: [..., out].

    Ours rounds x / S and adds Z, theirs rounds the sum. x / S + Z, at most 2^8 where it is not clamped, is rounded to
    float32 by at most 2^-17 and the quotient by as much: within 2^-16 of a tie they may choose neighbours, which moves
    the output by S |w|. Sums of n products lose at most n 2^-24 sum |x w| each, in whatever order; four more roundings
    of 2^-24 are those of x, of w, of their scales' product and of the bias added.
    """
    weight, values = layer.dequantized_weight().double(), input.double()
    moved = torch.zeros(*input.shape[:-1], layer.out_features, dtype=torch.float64)
    if layer.activation is not None:
        scale, zero_point = (
            layer.quantized_input(input).scale.double(),
            layer.quantized_input(input).zero_point.double(),
        )
        quotient = values / scale
        near = ((quotient - quotient.floor() - 0.5).abs() <= 2**-16) & (quotient + zero_point).abs().le(2**8)
        assert near.float().mean() <= 1e-3, "near-ties are not rare"
        moved = (near * scale) @ weight.abs().T
        values = (torch.round(quotient) + zero_point).clamp(-128, 127).sub(zero_point) * scale
    sizes = values.abs() @ weight.abs().T + (0 if layer.bias is None else layer.bias.double().abs())
    return moved + 2 * (layer.in_features + 4) * 2**-24 * (sizes + moved)


def rounding_noise(ours: Any, ids: torch.Tensor) -> float:
    """What rounding its activations does to a model's logits, as a standard deviation.

    Rounding moves every input by S / sqrt(12), a near-tie that falls the other way moves one by S. If a share f of them
    does, logits move by sqrt(12 f) times this noise: by less than all of it up to one input in twelve. Over two layers,
    near-ties and what follows from them are far rarer.
    """
    layers = [layer for layer in integer_linears(ours).values() if layer.activation is not None]
    rounded, kept = logits(ours, ids), [layer.activation for layer in layers]
    for layer in layers:
        layer.activation = None
    moved = rounded - logits(ours, ids)
    for layer, activation in zip(layers, kept, strict=True):
        layer.activation = activation
    return float(moved.std())
