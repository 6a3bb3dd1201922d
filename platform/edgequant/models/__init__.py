"""Which models there are, and how to load one: short name, hub id, folder, GGUF file, MLflow URI."""

from __future__ import annotations

from edgequant.models.configs import folder_config, is_checkpoint
from edgequant.models.devices import DTYPES, cast, check_device, check_dtype, computes_bfloat16, pick_device, pick_dtype
from edgequant.models.digest import weights_digest
from edgequant.models.loading import LoadedModel, check_available, load, load_tokenizer, rehearse
from edgequant.models.sources import (
    HUB_MODELS,
    SHORT_NAMES,
    SMOLLM2_CONFIG,
    ModelSource,
    check_floating,
    context_length,
    layer_inputs,
    resolve,
    stated_sizes,
)
from edgequant.models.tiny import TINY_SIZES

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
    "check_device",
    "check_dtype",
    "check_floating",
    "computes_bfloat16",
    "context_length",
    "folder_config",
    "is_checkpoint",
    "layer_inputs",
    "load",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "rehearse",
    "resolve",
    "stated_sizes",
    "weights_digest",
]
