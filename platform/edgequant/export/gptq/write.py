"""Write a quantised checkpoint as a folder in GPTQ's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgequant.export.formats import GPTQ, QUANTIZE_CONFIG, Exported, checkpoint_scheme
from edgequant.export.gptq.expressible import check_scheme, check_widths
from edgequant.export.gptq.layout import AS_IT_IS, LESS_ONE, gptq_tensors, zero_points
from edgequant.export.tensors_folder import write_tensors_folder
from edgequant.models.loading import LoadedModel
from edgequant.quantization.layers.integer import IntegerLayer, integer_layers
from edgequant.quantization.scheme import Scheme


def write_gptq(loaded: LoadedModel, folder: str | Path) -> Exported:
    """Write a quantised checkpoint's integers, scales and zero points as they are, whole or not at all.

    Zero points lie one less, as all readers know it, unless one of them is 0, which some readers then get wrong: the
    whole folder has the format `gptq_v2` then. What stays in floating point keeps its type.

    Args:
        loaded: a checkpoint of ours, as `models.load` gives it.
        folder: to write: new, empty, or an earlier export, which is replaced.

    Raises:
        UserError: the model is not a quantised checkpoint, or GPTQ's layout has no place for its scheme or shapes.
    """
    scheme, model = checkpoint_scheme(loaded, GPTQ), loaded.model
    check_scheme(scheme)
    assert scheme.weight is not None
    layers = integer_layers(model)
    packed = [(name, layer.packed.rows, layer.packed.features) for name, layer in layers.items()]
    check_widths(scheme.weight.bits, packed)
    format = AS_IT_IS if any(bool((zero_points(layer.packed) == 0).any()) for layer in layers.values()) else LESS_ONE
    quantization = quantization_config(scheme, format)
    stated = {"quantization_config": quantization, "edgequant_scheme": scheme.name}
    return write_tensors_folder(
        loaded, folder, GPTQ, _tensors(model, layers, format), stated, _notes(scheme, format),
        beside={QUANTIZE_CONFIG: quantization},
    )  # fmt: skip


def quantization_config(scheme: Scheme, checkpoint_format: str) -> dict[str, Any]:
    """What config.json and quantize_config.json say, by gptqmodel's names."""
    spec = scheme.weight
    assert spec is not None
    return {
        "quant_method": "gptq",
        "bits": spec.bits,
        "group_size": spec.group_size,
        "desc_act": False,
        "sym": spec.zero_point == "none",
        "lm_head": False,
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
        "meta": {"quantizer": ["edgequant"]},
    }


def _tensors(model: Any, layers: dict[str, IntegerLayer], format: str) -> dict[str, torch.Tensor]:
    """Every tensor of the folder under its name there, on the CPU; tied weights once."""
    laid_out = {path: gptq_tensors(layer.packed, format) for path, layer in layers.items()}
    named = {f"{path}.{name}": tensor for path, tensors in laid_out.items() for name, tensor in tensors.items()}
    named |= {name: parameter.detach().cpu().clone().contiguous() for name, parameter in model.named_parameters()}
    return named


def _notes(scheme: Scheme, format: str) -> list[str]:
    notes = ["transformers reads the folder with gptqmodel, vLLM by itself"]
    if format == AS_IT_IS:
        notes.append("a zero point is 0: format gptq_v2, which onnxruntime-genai's builder does not read")
    if scheme.activation is not None:
        notes.append("activations: those runtimes leave them in floating point")
    return notes
