"""How compressed-tensors expresses our integer layers: which module has which arguments, and how its codes lie on disk.

The names are those of compressed-tensors' `QuantizationConfig`, which transformers and vLLM read from config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import compressed_tensors
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from torch import nn

from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.scheme import ActivationSpec, WeightSpec

PACKED = "pack-quantized"  # codes fill 32-bit words
BYTES = "int-quantized"  # a byte for each code, whatever its width
MIXED = "mixed-precision"
CLASS = "Linear"  # as a target: all modules of that class

Arguments = tuple[WeightSpec, ActivationSpec | None]


@dataclass(frozen=True)
class Layer:
    """An integer layer of the model. `tied`: its weight is the embedding's. `looks_up`: it is the embedding."""

    path: str
    packed: PackedWeight
    activation: ActivationSpec | None
    tied: bool = False
    looks_up: bool = False

    @property
    def arguments(self) -> Arguments:
        return self.packed.spec, self.activation


def layers_of(model: nn.Module) -> list[Layer]:
    """The model's integer layers in its order, the embedding before a head that is tied to it; at whole levels."""
    layers = integer_layers(model).items()
    return [
        Layer(path, one.packed.at_whole_levels(), one.activation, tied=one.is_tied, looks_up=one.kind == "embedding")
        for path, one in layers
    ]


def dequantizes_on_load(layers: list[Layer]) -> bool:
    """Whether transformers has to fill floating-point layers instead of compressed ones.

    Packed zero points need it: compressed-tensors 0.20 lays the empty model that transformers fills out with unpacked
    ones, so that their shapes differ. So does a packed embedding: transformers would look its words up before it is
    unpacked, and a head tied to it would want integers of its own. The way around knows one set of arguments for all
    layers and no activations.
    """
    one_kind = len({layer.arguments for layer in layers}) == 1
    spec, activation = layers[0].arguments
    needed = spec.zero_point == "integer" or any(layer.looks_up for layer in layers)
    return one_kind and activation is None and needed


def storage_of(arguments: Arguments, layers: list[Layer]) -> str:
    """How codes lie on disk: packed where transformers can load that, else in bytes."""
    spec, activation = arguments
    embeds = any(layer.looks_up and layer.packed.spec == spec for layer in layers)
    packs = activation is None and spec.zero_point == "none" and not embeds
    return PACKED if packs or dequantizes_on_load(layers) else BYTES


def quantization_config(model: nn.Module, layers: list[Layer]) -> dict[str, Any]:
    """The `quantization_config` for config.json: a group for each set of arguments, floating-point linears ignored."""
    groups = {
        f"group_{index}": QuantizationScheme(
            targets=targets,
            weights=_weight_arguments(arguments[0]),
            input_activations=_activation_arguments(arguments[1]),
            format=storage_of(arguments, layers),
        )
        for index, (arguments, targets) in enumerate(_targets(model, layers))
    }
    formats = {str(group.format) for group in groups.values()}
    config = QuantizationConfig(
        config_groups=groups,
        format=formats.pop() if len(formats) == 1 else MIXED,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[path for path, module in model.named_modules() if isinstance(module, nn.Linear)],
    )
    extra = {"dequantize": True} if dequantizes_on_load(layers) else {}
    return config.model_dump(mode="json") | {"version": compressed_tensors.__version__} | extra


def _targets(model: nn.Module, layers: list[Layer]) -> list[tuple[Arguments, list[str]]]:
    """Arguments and the modules that have them; a class name stands for the linears of the blocks where all are alike.

    vLLM fuses linears under names of its own, which a class name matches in any case. Names come before classes, as
    the first target that matches a module is the module's.
    """
    outer = {module for name in ("input", "output") if (module := getattr(model, f"get_{name}_embeddings")())}
    modules = dict(model.named_modules())
    inner = {layer.path: layer.arguments for layer in layers if modules[layer.path] not in outer}
    alike = len(set(inner.values())) == 1
    targets: dict[Arguments, list[str]] = {}
    for layer in sorted(layers, key=lambda layer: alike and layer.path in inner):
        name = CLASS if alike and layer.path in inner else layer.path
        known = targets.setdefault(layer.arguments, [])
        if name not in known:
            known.append(name)
    return sorted(targets.items(), key=lambda group: CLASS in group[1])


def _weight_arguments(spec: WeightSpec) -> QuantizationArgs:
    return QuantizationArgs(
        num_bits=spec.bits,
        symmetric=spec.zero_point == "none",
        strategy=spec.granularity,
        group_size=spec.group_size,
    )


def _activation_arguments(spec: ActivationSpec | None) -> QuantizationArgs | None:
    if spec is None:
        return None
    dynamic = spec.mode == "dynamic"
    strategy = "token" if dynamic else "tensor"
    return QuantizationArgs(num_bits=spec.bits, symmetric=False, strategy=strategy, dynamic=dynamic)
