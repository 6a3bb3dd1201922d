"""Quantisation-aware training in three verbs: `prepare` the model, train it, `convert` it to integers.

scheme = parse_scheme("w4a8-g32+emb4")
prepare(model, scheme)             # fake-quantised layers over the same parameters
... train, calling set_phase(model, ...) as steps go by ...
convert(model)                     # integers; what was simulated is what runs
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.models.devices import check_finite, is_finite
from edgequant.models.same_function.comparison import (
    activation_limit,
    can_be_probed,
    check_same,
    probe_logits,
    probe_tokens,
    rounding_limit,
)
from edgequant.quantization.arithmetic.representable import check_representable
from edgequant.quantization.calibration import ObserverName
from edgequant.quantization.layers.fake_quantized import (
    FakeQuantizedEmbedding,
    FakeQuantizedLinear,
    fake_quantized_layers,
    output_scale_of,
)
from edgequant.quantization.layers.fixed_weights import awaits_integers
from edgequant.quantization.layers.input_quantizers import (
    DynamicInputQuantizer,
    Phase,
    learn_together,
    make_input_quantizer,
)
from edgequant.quantization.layers.integer import IntegerEmbedding, IntegerLinear
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.layers.targets import Targets, find_targets, replace_module
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.scheme import ActivationSpec, Scheme, WeightSpec


def prepare(
    model: nn.Module,
    scheme: Scheme,
    *,
    observer: ObserverName = "moving_average_minmax",
    learnable_scales: bool = False,
) -> Targets:
    """Replace, in place, the layers that the scheme names by fake-quantised ones over the same parameters.

    Args:
        model: any causal language model made of nn.Linear and nn.Embedding; tied weights stay tied.
        scheme: with backend `edgequant`.
        observer: how static activation ranges are found.
        learnable_scales: make weights' scales and zero points parameters that training moves (LSQ+).

    Raises:
        UserError: the scheme belongs to bitsandbytes, does not fit a layer (named), or finds nothing to quantise; a
            weight (named) is not finite, or too large for its scale.
    """
    if scheme.weight is None:
        raise UserError(
            f"scheme {scheme.name} is bitsandbytes' own and cannot be trained; use one such as w4a8-g32+emb4"
        )
    targets = find_targets(model, scheme)
    check_weights(model, scheme, targets)
    modules = dict(model.named_modules())
    phases: dict[str, Phase] = {}  # one a parent: compiled code sees that its linears quantise a shared input alike
    for name in targets.linears:
        linear = cast(nn.Linear, modules[name])
        weights = WeightQuantizer(scheme.spec_of(name, linear.in_features), linear.weight, learned=learnable_scales)
        phase = phases.setdefault(name.rpartition(".")[0], Phase(linear.weight.device))
        inputs = make_input_quantizer(scheme.activation, observer, phase)
        replace_module(model, name, FakeQuantizedLinear(linear, weights, inputs))
    if scheme.embedding is not None and targets.embedding is not None:
        embedding = cast(nn.Embedding, modules[targets.embedding])
        spec = scheme.spec_of(targets.embedding, embedding.embedding_dim, embedding=True)
        weights = WeightQuantizer(spec, embedding.weight, learned=learnable_scales)
        replace_module(model, targets.embedding, FakeQuantizedEmbedding(embedding, weights))
        if targets.head is not None:
            linear = cast(nn.Linear, modules[targets.head])
            if not targets.tied:
                spec = scheme.spec_of(targets.head, linear.in_features, embedding=True)
                weights = WeightQuantizer(spec, linear.weight, learned=learnable_scales)
            inputs = make_input_quantizer(scheme.activation, observer, Phase(linear.weight.device))
            replace_module(model, targets.head, FakeQuantizedLinear(linear, weights, inputs, tied=targets.tied))
    return targets


def check_weights(model: nn.Module, scheme: Scheme, targets: Targets | None = None) -> None:
    """Refuse a model that a scheme cannot stand for, before anything is measured or made of it.

    Raises:
        UserError: as `find_targets`; a weight (named) is not finite, or too large for its scale's storage type.
    """
    targets = find_targets(model, scheme) if targets is None else targets
    check_finite(model)
    modules = dict(model.named_modules())
    for name in targets.weights:
        weight = cast(nn.Linear, modules[name]).weight
        embeds = name in (targets.embedding, targets.head)
        check_representable(name, weight, scheme.spec_of(name, weight.shape[1], embedding=embeds))


def set_phase(model: nn.Module, *, quantize_inputs: bool, observe: bool, reuse_weights: bool = False) -> None:
    """Say what the quantisers do from here on; call it before each optimiser step.

    Args:
        quantize_inputs: simulate integer activations; off during the first steps (delayed activation quantisation).
        observe: static ranges follow the data; off late in training and in evaluation.
        reuse_weights: simulate each weight once until the next call, however many forward passes (of a step that
            accumulates gradients) come before it.
    """
    for layer in fake_quantized_layers(model).values():
        layer.quantizer.begin_step(reuse=reuse_weights)
        if layer.input_quantizer is not None:
            layer.input_quantizer.set_phase(enabled=quantize_inputs, observing=observe)


def has_static_ranges(model: nn.Module) -> bool:
    """Whether ranges have to be observed before the model can be converted."""
    return any(layer.needs_range for layer in fake_quantized_layers(model).values())


def lacks_ranges(model: nn.Module) -> bool:
    """Whether any of them was not observed yet."""
    quantizers = [layer.input_quantizer for layer in fake_quantized_layers(model).values()]
    return not all(one is None or one.has_range for one in quantizers)


@torch.no_grad()
def calibrate(model: nn.Module, batches: list[Tensor]) -> None:
    """Run token batches [batch, length] to observe static activation ranges, inputs unquantised meanwhile."""
    set_phase(model, quantize_inputs=False, observe=True)
    checks = [
        layer.register_forward_pre_hook(partial(_check_inputs, name))
        for name, layer in fake_quantized_layers(model).items()
        if layer.needs_range
    ]
    try:
        for batch in batches:
            model(input_ids=batch)
    finally:
        for check in checks:
            check.remove()
    set_phase(model, quantize_inputs=True, observe=False)


@torch.no_grad()
def learn_ranges(model: nn.Module) -> None:
    """Train observed static activation ranges from here on; linears of one parent that saw the same share one."""
    learn_together(
        (name.rpartition(".")[0], layer.input_quantizer)
        for name, layer in fake_quantized_layers(model).items()
        if layer.input_quantizer is not None
    )


def _check_inputs(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if inputs[0].is_floating_point():
        check_activations(name, inputs[0])


def check_activations(where: str, activations: Tensor) -> None:
    """Refuse activations of calibration that are not finite: no range and no rounding can be chosen by them.

    Raises:
        UserError: says where they are.
    """
    if not is_finite(activations):
        raise UserError(
            f"calibration activations must be finite, got NaN or infinity at {where}; the model overflows on this "
            "text: look at its weights, or use calibration.precision float32"
        )


@torch.no_grad()
def convert(model: nn.Module, text: Tensor | None = None) -> None:
    """Replace, in place, fake-quantised layers by integer ones. Tied weights are quantised and stored once.

    Args:
        model: after `prepare`; of a causal language model, logits before and after are compared.
        text: token ids [1, length] to compare them on (default: `probe_tokens`).

    Raises:
        UserError: static ranges were never observed; a weight (named) is not finite, as after a training that diverged;
            or the integers compute something else than was simulated.
    """
    with _as_simulated(model, text):
        embeddings: dict[int, PackedWeight] = {}
        layers = fake_quantized_layers(model).items()
        for name, layer in sorted(layers, key=lambda pair: pair[1].kind != "embedding"):
            shared = embeddings.get(id(layer.weight))
            if shared is None and not layer.is_frozen:
                check_representable(name, layer.weight, layer.spec)
            packed = layer.packed() if shared is None else shared
            if not is_finite(packed.scale):
                raise UserError(
                    f"scales must be finite, got NaN or infinity in {name}; train with a lower learning rate"
                )
            if layer.kind == "embedding":
                embeddings[id(layer.weight)] = packed
            replace_module(model, name, layer.to_integer(packed, tied=shared is not None))
        DynamicInputQuantizer.forget()


@contextmanager
def _as_simulated(model: nn.Module, text: Tensor | None) -> Iterator[None]:
    layers = fake_quantized_layers(model).values()
    if not can_be_probed(model) or any(map(awaits_integers, layers)):
        yield  # a part of a model, or one whose integers are chosen by the conversion itself
        return
    tokens = probe_tokens(model) if text is None else text
    limit, simulated = rounding_limit(model), _simulated_logits(model, tokens, quantize_inputs=True)
    if any(layer.input_quantizer is not None for layer in layers):
        limit += activation_limit(_simulated_logits(model, tokens, quantize_inputs=False), simulated)
    yield
    check_same(simulated, probe_logits(model, tokens), limit, "converting to integers")


def _simulated_logits(model: nn.Module, tokens: Tensor, *, quantize_inputs: bool) -> Tensor:
    set_phase(model, quantize_inputs=quantize_inputs, observe=False)
    return probe_logits(model, tokens)


def build_integer_layers(model: nn.Module, scheme: Scheme) -> Targets:
    """Replace, in place, the layers of a freshly built model (also on the meta device) by empty integer ones.

    What a checkpoint's tensors are loaded into.
    """
    targets = find_targets(model, scheme)
    modules = dict(model.named_modules())
    for name in targets.linears:
        linear = cast(nn.Linear, modules[name])
        replace_module(model, name, _empty_linear(linear, scheme.spec_of(name, linear.in_features), scheme.activation))
    if scheme.embedding is not None and targets.embedding is not None:
        old = cast(nn.Embedding, modules[targets.embedding])
        spec = scheme.spec_of(targets.embedding, old.embedding_dim, embedding=True)
        packed = PackedWeight(old.num_embeddings, old.embedding_dim, spec, old.weight.device)
        replace_module(model, targets.embedding, IntegerEmbedding(packed, old.weight.dtype, output_scale_of(old)))
        if targets.head is not None:
            head = cast(nn.Linear, modules[targets.head])
            spec = scheme.spec_of(targets.head, head.in_features, embedding=True)
            shared = packed if targets.tied else None
            replace_module(model, targets.head, _empty_linear(head, spec, scheme.activation, shared))
    return targets


def _empty_linear(
    linear: nn.Linear, spec: WeightSpec, activation: ActivationSpec | None, shared: PackedWeight | None = None
) -> IntegerLinear:
    packed = shared or PackedWeight(linear.out_features, linear.in_features, spec, linear.weight.device)
    return IntegerLinear(packed, linear.bias, activation, tied=shared is not None)
