"""Which models there are, and how to load one: short name, hub id, folder, GGUF file, MLflow URI."""

from __future__ import annotations

from edgequant.models.loading import (
    DTYPES,
    HUB_MODELS,
    SHORT_NAMES,
    SMOLLM2_CONFIG,
    TINY_SIZES,
    LoadedModel,
    ModelSource,
    cast,
    check_available,
    computes_bfloat16,
    folder_config,
    is_checkpoint,
    layer_inputs,
    load,
    load_tokenizer,
    pick_device,
    pick_dtype,
    resolve,
    weights_digest,
)

__all__ = [
    "DTYPES",
    "HUB_MODELS",
    "SHORT_NAMES",
    "SMOLLM2_CONFIG",
    "TINY_SIZES",
    "LoadedModel",
    "ModelSource",
    "cast",
    "check_available",
    "computes_bfloat16",
    "folder_config",
    "is_checkpoint",
    "layer_inputs",
    "load",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "resolve",
    "weights_digest",
]
