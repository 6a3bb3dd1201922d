"""Write a quantised checkpoint as a compressed-tensors folder: transformers and vLLM read it without edgequant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from torch import Tensor, nn

from edgequant.export.compressed_tensors.layout import (
    BYTES,
    PACKED,
    Layer,
    dequantizes_on_load,
    layers_of,
    quantization_config,
    storage_of,
)
from edgequant.export.formats import COMPRESSED_TENSORS, Exported, check_expressible, checkpoint_scheme
from edgequant.export.tensors_folder import write_tensors_folder
from edgequant.models.loading import LoadedModel
from edgequant.quantization.layers.integer import integer_layers


def write_compressed_tensors(loaded: LoadedModel, folder: str | Path) -> Exported:
    """Write a quantised checkpoint's integers, scales and zero points as they are, whole or not at all.

    What stays in floating point keeps its type on disk. config.json names float32 as the compute type: transformers
    keeps scales in the compute type, and in a shorter one they would no longer be ours.

    Args:
        loaded: a checkpoint of ours, as `models.load` gives it.
        folder: to write: new, empty, or an earlier export, which is replaced.

    Raises:
        UserError: the model is not a quantised checkpoint, or its scheme has no place in compressed-tensors.
    """
    scheme = checkpoint_scheme(loaded, COMPRESSED_TENSORS)
    check_expressible(scheme)
    model: Any = loaded.model
    layers = layers_of(model)
    stated = {"quantization_config": quantization_config(model, layers), "dtype": "float32"}
    stated |= {"edgequant_scheme": scheme.name}
    return write_tensors_folder(
        loaded, folder, COMPRESSED_TENSORS, _tensors(model, layers), stated, _notes(model, layers)
    )


def _tensors(model: nn.Module, layers: list[Layer]) -> dict[str, Tensor]:
    """Every tensor of the folder under its name there, on the CPU; tied weights once."""
    named: dict[str, Tensor] = {}
    dequantized = dequantizes_on_load(layers)
    for layer in layers:
        storage = storage_of(layer.arguments, layers)
        if not (layer.tied and storage == PACKED):  # else its head shares the embedding's dequantised weight
            named |= {
                f"{layer.path}.{name}": tensor for name, tensor in _weight_tensors(layer, storage, dequantized).items()
            }
    seen: set[int] = set()
    left_out = _modules_of_codes(model)
    for path, module in model.named_modules():
        for name, tensor in _other_tensors(module).items():
            if module not in left_out and id(tensor) not in seen:
                seen.add(id(tensor))
                named[f"{path}.{name}" if path else name] = tensor
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in named.items()}


def _weight_tensors(layer: Layer, storage: str, dequantized: bool) -> dict[str, Tensor]:
    """Codes, scales [rows, groups] and zero points as compressed-tensors names and shapes them."""
    packed, bits = layer.packed, layer.packed.spec.bits
    quantized = packed.unpacked()
    codes = quantized.codes.reshape(packed.rows, packed.features)
    zero_point = None if quantized.zero_point is None else quantized.zero_point[..., 0].to(torch.int8)
    if storage == BYTES:
        # A tied head finds the embedding's codes; its scales and zero points are its own all the same.
        tensors = {} if layer.tied else {"weight": codes}
        tensors["weight_scale"] = packed.scale
    else:
        shape = torch.tensor([packed.rows, packed.features])
        tensors = {"weight_packed": pack_to_int32(codes, bits), "weight_shape": shape}
        # Dequantising on load computes in the scales' type; float16 would round the products.
        tensors["weight_scale"] = packed.scale.float() if dequantized else packed.scale
        zero_point = None if zero_point is None else pack_to_int32(zero_point, bits, packed_dim=0)
    return tensors if zero_point is None else tensors | {"weight_zero_point": zero_point}


def _modules_of_codes(model: nn.Module) -> set[nn.Module]:
    """What holds codes and scales, and embeddings: Gemma's class brings its factor itself."""
    layers = integer_layers(model).values()
    return {layer.packed for layer in layers} | {layer for layer in layers if layer.kind == "embedding"}


def _other_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own tensors: biases, norms, floating-point weights, static input ranges."""
    tensors: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    return tensors | {
        name: tensor
        for name, tensor in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def _notes(model: nn.Module, layers: list[Layer]) -> list[str]:
    notes = []
    if dequantizes_on_load(layers):
        notes.append("transformers dequantises the weights while it loads the folder")
    in_bytes = [layer.packed.spec for layer in layers if storage_of(layer.arguments, layers) == BYTES]
    widened = sum(spec.bits < 8 for spec in in_bytes)
    if widened:
        notes.append(
            f"{widened} of {len(layers)} matrices take a byte for each integer of fewer bits: transformers cannot load "
            "them packed"
        )
    if any(layer.packed.spec.has_half_levels for layer in integer_layers(model).values()):
        notes.append("symmetric integers of 2 bits take 3: compressed-tensors knows no levels at halves")
    if any(layer.activation is not None and layer.packed.spec.zero_point != "none" for layer in layers):
        notes.append("vLLM refuses affine weights beside quantised activations; the folder is for transformers")
    if any(layer.kind == "embedding" for layer in integer_layers(model).values()):
        notes.append("vLLM's embedding has no zero points; an embedding in integers is for transformers")
    return notes
