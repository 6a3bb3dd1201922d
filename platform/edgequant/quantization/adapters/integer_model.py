"""A loaded checkpoint made trainable and put back: `adapt_integers`, train, `merge_into_integers`.

loaded = models.load("CHECKPOINT", dtype="float32")
adapted = adapt_integers(loaded.model, rank=16, alpha=32.0)     # the same logits, through layers with gradients
... train ...
merge_into_integers(adapted)                                    # integers again, in the scheme and size that they had
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.models.same_function.comparison import (
    activation_limit,
    check_same,
    probe_logits,
    probe_tokens,
    relative_difference,
    rounding_limit,
)
from edgequant.quantization.adapters.step_updates import SteppedCodesQuantizer
from edgequant.quantization.arithmetic.affine import fake_quantize
from edgequant.quantization.arithmetic.packing import pack
from edgequant.quantization.layers.convert import set_phase
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear, fake_quantized_layers
from edgequant.quantization.layers.frozen_weights import FrozenCodesQuantizer
from edgequant.quantization.layers.input_quantizers import INT8, DynamicInputQuantizer, InputQuantizer, Phase
from edgequant.quantization.layers.integer import IntegerLinear, integer_layers
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.layers.targets import replace_module

ALL_LINEAR = "all-linear"


class IntegerModel(NamedTuple):
    """A checkpoint's model whose linears have gradients.

    Attributes:
        model: the model itself, changed in place.
        originals: its integer linears by name, which hold what was loaded.
        adapted: names of those that train.
    """

    model: Any
    originals: dict[str, IntegerLinear]
    adapted: tuple[str, ...]


def adapt_integers(model: Any, *, rank: int, alpha: float, targets: str = ALL_LINEAR, seed: int = 0) -> IntegerModel:
    """Let a loaded checkpoint's linears be trained through their integers, in place; all else is frozen.

    Args:
        model: of `models.load`, float32 where it is not integers.
        rank: of the update in steps; 0: scales train alone. None of the linears is trained where there are no targets.
        alpha: scale of the update.
        targets: `all-linear` (but the head), the last parts of names with commas, or nothing: gradients pass, and
            adapters may be put beside the layers.
        seed: draws A.

    Raises:
        UserError: no layer has one of the target names.
    """
    model.requires_grad_(False)
    layers = integer_layers(model).items()
    originals = {name: cast(IntegerLinear, layer) for name, layer in layers if layer.kind == "linear"}
    adapted = _targets(model, originals, targets)
    generator, phases = torch.Generator().manual_seed(seed), dict[str, Phase]()
    for name, layer in originals.items():
        weight = layer.packed.unpacked()
        given = (layer.packed.spec, weight, layer.in_features)
        if name in adapted:
            quantizer: FrozenCodesQuantizer = SteppedCodesQuantizer(*given, rank, alpha, generator)
        else:
            quantizer = FrozenCodesQuantizer(*given, torch.float32).requires_grad_(False)
        phase = phases.setdefault(name.rpartition(".")[0], Phase(weight.codes.device))
        replace_module(model, name, FakeQuantizedLinear(_as_linear(layer), quantizer, _input_quantizer(layer, phase)))
    model.is_quantized = False  # transformers' Trainer refuses to train what says so
    model.hf_quantizer, model.edgequant_quantizer = None, getattr(model, "hf_quantizer", None)
    set_phase(model, quantize_inputs=True, observe=False)
    return IntegerModel(model, originals, adapted)


@torch.no_grad()
def merge_into_integers(adapted: IntegerModel, tokenizer: Any = None) -> float:
    """Put integer layers back in place, with the codes and scales that were trained; nothing is rounded anew.

    Args:
        adapted: used up; its model is an ordinary checkpoint's again.
        tokenizer: the model's own, to compare logits on text before and after.

    Returns:
        Relative difference of the logits on a fixed text.

    Raises:
        UserError: a scale is not finite, as after a training that diverged; or the integers compute something else.
    """
    model, layers = adapted.model, fake_quantized_layers(adapted.model)
    tokens = probe_tokens(model, tokenizer)
    limit, before = _limit(model, tokens)
    for name in adapted.adapted:
        packed = layers[name].packed()
        if not packed.scale.isfinite().all():
            raise UserError(f"scales must be finite, got NaN or infinity in {name}; train with a lower learning rate")
        adapted.originals[name].packed_weight = packed
    restore_integers(adapted)
    after = probe_logits(model, tokens)
    check_same(before, after, limit, "merging the adapters into the integers")
    return relative_difference(before, after)


def restore_integers(adapted: IntegerModel) -> None:
    """Put the integer layers back as they were loaded."""
    for name, layer in adapted.originals.items():
        layer._kernel_cache.clear()
        replace_module(adapted.model, name, layer)
    adapted.model.is_quantized, adapted.model.hf_quantizer = True, adapted.model.edgequant_quantizer
    DynamicInputQuantizer.forget()


def share_of_moved(adapted: IntegerModel) -> float:
    """Share of the adapted layers' integers that their updates have moved."""
    moved = total = 0
    for name, layer in fake_quantized_layers(adapted.model).items():
        if name in adapted.adapted and isinstance(layer.quantizer, FrozenCodesQuantizer):
            before = adapted.originals[name].packed.unpacked().codes.flatten()
            after = layer.quantizer.codes(layer.weight).codes.flatten()
            moved, total = moved + int((before != after).sum()), total + before.numel()
    return moved / total if total else 0.0


def _targets(model: Any, layers: dict[str, IntegerLinear], targets: str) -> tuple[str, ...]:
    head = model.get_output_embeddings()
    if targets == ALL_LINEAR:
        return tuple(name for name, layer in layers.items() if layer is not head)
    wanted = [name.strip() for name in targets.split(",") if name.strip()]
    found = tuple(name for name in layers if name.rpartition(".")[2] in wanted and not layers[name].is_tied)
    kinds = sorted({name.rpartition(".")[2] for name, layer in layers.items() if not layer.is_tied})
    if lacking := [name for name in wanted if name not in {each.rpartition(".")[2] for each in found}]:
        raise UserError(
            f"lora.targets {targets!r} does not fit: {lacking[0]!r} is none of the checkpoint's integer linears "
            f"{', '.join(kinds)}"
        )
    return found


def _as_linear(layer: IntegerLinear) -> nn.Linear:
    """What the simulated layer takes its parameters from: packed codes for a weight, and the bias."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(_codes(layer.packed), requires_grad=False)
    linear.bias = layer.bias  # type: ignore[assignment]
    return linear


def _codes(packed: PackedWeight) -> Tensor:
    """The checkpoint's own bytes where they are packed alike; ternary codes lie five to a byte there."""
    if packed.spec.levels != 3:
        return packed.codes
    return pack(packed.unpacked().codes.reshape(packed.rows, packed.features), packed.spec.bits)


class _GivenRange(InputQuantizer):
    """Simulates 8-bit inputs in the range that a checkpoint has stored."""

    mode = "static"
    needs_range = False  # type: ignore[assignment]
    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: IntegerLinear, phase: Phase) -> None:
        super().__init__(phase)
        assert layer.input_scale is not None and layer.input_zero_point is not None
        self.register_buffer("scale", layer.input_scale.float(), persistent=False)
        self.register_buffer("zero_point", layer.input_zero_point.float(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return fake_quantize(inputs, self.scale, self.zero_point, INT8) if self.phase.simulating else inputs


def _input_quantizer(layer: IntegerLinear, phase: Phase) -> InputQuantizer | None:
    if layer.activation is None:
        return None
    return _GivenRange(layer, phase) if layer.activation.mode == "static" else DynamicInputQuantizer(phase)


def _limit(model: Any, tokens: Tensor) -> tuple[float, Tensor]:
    """How far integers may be from their simulation, as `convert` allows it, and the simulation's logits."""
    before, limit = probe_logits(model, tokens), rounding_limit(model)
    if any(layer.input_quantizer is not None for layer in fake_quantized_layers(model).values()):
        set_phase(model, quantize_inputs=False, observe=False)
        limit += activation_limit(probe_logits(model, tokens), before)
        set_phase(model, quantize_inputs=True, observe=False)
    return limit, before
