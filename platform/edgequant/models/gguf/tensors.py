"""From the tensors of a GGUF file to the weights of a transformers model: every one has its place, none is made up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, ReaderTensor, get_tensor_name_map
from gguf.quants import dequantize
from torch import Tensor, nn

from edgequant.models.gguf.configuration import ATTENTION_BIASES, Architecture
from edgequant.models.gguf.contents import Contents
from edgequant.models.gguf.rope import FACTORS, LONG, SHORT

FREQUENCIES = (FACTORS, SHORT, LONG)
FUSED = {"attn_qkv": ("attn_q", "attn_k", "attn_v")}  # older conversions of Phi


Stored = tuple[ReaderTensor, tuple[int, int] | None]


@dataclass(frozen=True)
class Weight:
    """Where a weight of the model comes from: a tensor of the file, some of its rows, in an order, less an offset.

    Attributes:
        stored: its name in the file.
        tensor: None for a bias that the file leaves out, which is zero.
        rows: of the tensor, first and behind the last; None for all.
        heads: whose rows are put back into halves; None for rows as they are.
    """

    name: str
    stored: str
    shape: tuple[int, ...]
    tensor: ReaderTensor | None = None
    rows: tuple[int, int] | None = None
    heads: int | None = None
    offset: float = 0.0

    def read(self) -> Tensor:
        """The weight in float32."""
        if self.tensor is None:
            return torch.zeros(self.shape)
        values = torch.from_numpy(np.array(dequantize(self.tensor.data, self.tensor.tensor_type), dtype=np.float32))
        values = values if self.rows is None else values[self.rows[0] : self.rows[1]]
        values = values if self.heads is None else _halves(values, self.heads)
        return values - self.offset if self.offset else values


def plan_weights(contents: Contents, architecture: Architecture, model: nn.Module) -> list[Weight]:
    """Which tensor becomes which weight; the values are not read.

    Args:
        model: of the file's configuration, on the meta device.

    Raises:
        UserError: a tensor without a place, a weight without a tensor, a shape or a type that does not fit.
    """
    stored, names = _unfused(contents, model.config), _names(contents, model)
    stray = sorted(set(stored) - set(names.values()) - set(FREQUENCIES))
    if stray:
        others = f", nor have {len(stray) - 1} others" if len(stray) > 1 else ""
        raise contents.refused(f"tensor {stray[0]} has no place in transformers' {architecture.model_type}{others}")
    _check_types(contents)
    weights = [Weight(name, names[name], tuple(own.shape)) for name, own in model.named_parameters()]
    return [_filled(contents, architecture, model.config, weight, stored.get(weight.stored)) for weight in weights]


def state_dict(contents: Contents, weights: list[Weight], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in a floating-point type.

    Raises:
        UserError: a weight is not a finite number.
    """
    state = {}
    for weight in weights:
        state[weight.name] = weight.read().to(dtype)
        if not state[weight.name].isfinite().all():
            raise contents.refused(
                f"tensor {weight.stored} holds numbers that are not finite in {dtype}; copy it again"
            )
    return state


def _names(contents: Contents, model: nn.Module) -> dict[str, str]:
    """The file's name of each weight of the model, of a tied head as well, should the file repeat it."""
    kind = next(key for key, name in MODEL_ARCH_NAMES.items() if name == contents.architecture)
    config: Any = model.config
    table = get_tensor_name_map(kind, config.num_hidden_layers)
    names = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}
    return {name: found for name, found in names.items() if found is not None}


def _unfused(contents: Contents, config: Any) -> dict[str, Stored]:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    cuts = ((0, queries), (queries, queries + keys), (queries + keys, queries + 2 * keys))
    found: dict[str, Stored] = {}
    for name, tensor in contents.tensors.items():
        part = next((part for part in FUSED if f".{part}." in name), None)
        if part is None:
            found[name] = (tensor, None)
        else:
            found |= {name.replace(part, one): (tensor, rows) for one, rows in zip(FUSED[part], cuts, strict=True)}
    return found


def _filled(
    contents: Contents, architecture: Architecture, config: Any, weight: Weight, found: Stored | None
) -> Weight:
    if found is None:
        if weight.stored.endswith(ATTENTION_BIASES):  # a layer may have some; all have a place in transformers
            return weight
        raise contents.refused(
            f"tensor {weight.stored} not found, for weight {weight.name} of transformers' {architecture.model_type}"
        )
    tensor, rows = found
    shape = tuple(int(size) for size in reversed(tensor.shape))
    shape = shape if rows is None else (min(rows[1], shape[0]) - rows[0], *shape[1:])
    if shape != weight.shape:
        raise contents.refused(f"tensor {weight.stored} must have shape {list(weight.shape)}, got {list(shape)}")
    offset = architecture.norm_offset if weight.stored.endswith("norm.weight") else 0.0
    heads = _reordered_heads(config, weight.name) if architecture.interleaved_rotary else None
    return replace(weight, tensor=tensor, rows=rows, heads=heads, offset=offset)


def _reordered_heads(config: Any, name: str) -> int | None:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(name.rpartition(".")[0].rpartition(".")[2])


def _halves(values: Tensor, heads: int) -> Tensor:
    """llama.cpp's `llama` rotates feature 2i of a head with 2i + 1, transformers i with i + d/2."""
    pairs = values.view(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def _check_types(contents: Contents) -> None:
    unreadable = {kind for kind in {one.tensor_type for one in contents.tensors.values()} if not _dequantizes(kind)}
    for tensor in contents.tensors.values():
        if tensor.tensor_type in unreadable:
            raise contents.refused(
                f"tensor {tensor.name} is stored as {tensor.tensor_type.name}, which the gguf package cannot turn into "
                "floating point; convert the model as Q8_0 or F16"
            )


def _dequantizes(kind: GGMLQuantizationType) -> bool:
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True
