"""A folder in GPTQ's layout read back without gptqmodel: its weights, dequantised, in a model of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgequant.export.formats import QUANTIZE_CONFIG
from edgequant.export.gptq.layout import LESS_ONE, words_of
from edgequant.export.tensors_folder import WEIGHTS
from edgequant.models import load_tokenizer


class ReadBack(NamedTuple):
    """The model in float32, and its tokenizer."""

    model: Any
    tokenizer: Any


def read_gptq(folder: Path) -> ReadBack:
    """Dequantise a folder that `write_gptq` wrote."""
    from transformers import AutoConfig, AutoModelForCausalLM

    stated = json.loads((folder / QUANTIZE_CONFIG).read_text())
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    stored = load_file(folder / WEIGHTS)
    weights = {name: tensor.float() for name, tensor in stored.items() if tensor.dtype.is_floating_point}
    for path in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
        weights[f"{path}.weight"] = _dequantized(stored, path, stated["bits"], stated["checkpoint_format"])
        del weights[f"{path}.scales"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return ReadBack(model.eval(), load_tokenizer(str(folder)))


def _dequantized(stored: dict[str, Tensor], path: str, bits: int, format: str) -> Tensor:
    """[rows, features] float32."""
    codes = words_of(stored[f"{path}.qweight"].T.contiguous(), bits)
    zeros = (words_of(stored[f"{path}.qzeros"], bits) + int(format == LESS_ONE)) & (2**bits - 1)
    group = stored[f"{path}.g_idx"].long()
    return (codes - zeros[group].T) * stored[f"{path}.scales"].float()[group].T
