"""A model's tensors, one at a time, as llama.cpp stores them: weights are encoded, packed integers re-laid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.export.formats import BLOCK
from edgequant.export.gguf.k_quants import super_blocks
from edgequant.quantization.layers.integer import IntegerLayer, integer_layers
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.weight_spec import IN_PLACE_OF, ggml_spec

Bytes = np.ndarray[Any, Any]
_HALF = 65504.0
# By format: a float16 scale is the largest number over its highest level; affine formats store the lowest itself.
LARGEST = {"f16": _HALF, "q4_1": _HALF, "q5_1": _HALF, "q4_0": 8 * _HALF, "q5_0": 16 * _HALF, "q8_0": 127 * _HALF}
LARGEST |= {"q4_k": 63 * _HALF, "q6_k": 128 * 32 * _HALF}  # a factor of scales or minima over its highest integer


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of the model. `read` gives it as float32 on the CPU; `packed` are its integers where it has any."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    packed: PackedWeight | None = None


def source_tensors(model: nn.Module) -> Iterator[SourceTensor]:
    """Every tensor of a model under its name in transformers, tied ones under their first name only."""
    seen: set[int] = set()
    layers = integer_layers(model)
    for path, module in model.named_modules():
        for tensor, identity in _own_tensors(path, module, layers.get(path)):
            if identity not in seen:
                seen.add(identity)
                yield tensor


def _own_tensors(path: str, module: nn.Module, integer: IntegerLayer | None) -> Iterator[tuple[SourceTensor, int]]:
    if integer is not None:
        packed = integer.packed
        shape = (packed.rows, packed.features)
        yield SourceTensor(f"{path}.weight", shape, lambda: packed.dequantized().cpu(), packed), id(packed)
    for name, parameter in module.named_parameters(path, recurse=False):
        yield SourceTensor(name, tuple(parameter.shape), _reader(parameter)), id(parameter)


def _reader(parameter: nn.Parameter) -> Callable[[], Tensor]:
    return lambda: parameter.detach().to("cpu", torch.float32)


def stored_shape(shape: tuple[int, ...], kind: GGMLQuantizationType) -> tuple[int, ...]:
    """The shape of the encoded array: bytes per row in the last dimension, values for f16 and f32."""
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return shape
    return tuple(quant_shape_to_byte_shape(shape, kind))


def check_range(source: SourceTensor, format_name: str) -> None:
    """Refuse a tensor to be encoded whose numbers, or scales, a format would store as infinity.

    Raises:
        UserError: names the tensor.
    """
    if format_name not in LARGEST:
        return
    largest = float(source.read().abs().amax())
    if largest > LARGEST[format_name]:
        raise UserError(
            f"weights must be within {LARGEST[format_name]:,.0f} for format {format_name}, whose numbers are float16, "
            f"got {largest:,.0f} in {source.name}; use bf16 or f32"
        )


def encode(values: Tensor, kind: GGMLQuantizationType) -> Bytes:
    """Encode float32 values in a format; the result has the shape of `stored_shape`.

    With llama.cpp's rounding, but for K-quants, whose scales and minima are searched for here.
    """
    if (name := kind.name.lower()) in IN_PLACE_OF:
        return _rows(super_blocks(PackedWeight.nearest(values, ggml_spec(name))))
    encoded: Bytes = np.ascontiguousarray(quantize(values.contiguous().numpy(), kind))
    return encoded


def encode_packed(packed: PackedWeight, row_order: Tensor | None, format_name: str) -> Bytes:
    """Lay a checkpoint's integers out as llama.cpp's blocks, rows in the given order. See `choice.copies_integers`."""
    order = None if row_order is None else row_order.to(packed.codes.device)
    if packed.spec.is_k_quant:
        return _rows(super_blocks(packed, order))
    weight = packed.at_whole_levels().unpacked(order)
    codes = weight.codes.reshape(packed.rows, -1, BLOCK).cpu().numpy()
    blocks = codes.shape[1]
    scale = _per_block(weight.scale, blocks)
    if format_name == "q8_0":
        return _rows(_half_bytes(scale), codes.view(np.uint8))
    nibbles = _nibbles((codes + 8).astype(np.uint8))
    if format_name == "q4_0":
        return _rows(_half_bytes(scale), nibbles)
    offset = weight.minimum if weight.zero_point is None else -weight.scale * (weight.zero_point + 8)
    assert offset is not None
    return _rows(_half_bytes(scale), _half_bytes(_per_block(offset, blocks)), nibbles)


def _per_block(values: Tensor, blocks: int) -> Bytes:
    """[rows, groups, 1] to [rows, blocks, 1]: a group of 64 or 128 is two or four blocks with the same scale."""
    repeated: Bytes = values.repeat_interleave(blocks // values.shape[1], dim=1).cpu().numpy()
    return repeated


def _half_bytes(values: Bytes) -> Bytes:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise UserError(
            "scales and offsets must be within float16's 65,504 to be copied to q4_1; export as bf16 or f32"
        )
    return np.ascontiguousarray(halves).view(np.uint8)


def _nibbles(codes: Bytes) -> Bytes:
    """ggml-common.h, block_q4_0: byte j holds value j in its low and value j + 16 in its high half."""
    low, high = codes[..., : BLOCK // 2], codes[..., BLOCK // 2 :]
    return low | (high << 4)


def _rows(*parts: Bytes) -> Bytes:
    """Blocks [rows, blocks, bytes] side by side to rows of bytes."""
    joined = np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(joined.reshape(joined.shape[0], -1))
