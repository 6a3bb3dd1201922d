"""Which product runs where: the seam for faster kernels. Each says when it applies; the caller has a fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from edgequant.quantization.integer import PackedWeight

CPU_ROWS = 4  # up to here a row-at-a-time kernel beats dequantising the matrix for a large product
CUDA_MULTIPLICATIONS = 4e9  # likewise: on an H100 the int4 kernel then takes the 0.3 ms that dequantising does
NEAR_ZERO = 32  # int8 zero points up to here lose no more than two bits to cancellation
CUDA_INNER_TILES = 2  # of 16 inputs, side by side in the int4 kernel's layout
CUDA_MINIMUM_ROWS = 32  # cuBLAS's int8 product wants more than 16 rows


def multiplies_int8(packed: PackedWeight) -> bool:
    """Whether weight and input can be multiplied as int8: 8-bit codes and one scale for each output."""
    return packed.spec.bits == 8 and packed.groups == 1 and packed.minimum is None


def int8_product(left: Tensor, right: Tensor) -> Tensor:
    """left [m, k] int8 times right [n, k] int8 transposed: [m, n] int32, exact.

    On CUDA, rows, inputs and outputs are padded to what cuBLAS takes.
    """
    if left.device.type != "cuda":
        return torch._int_mm(left, right.t())
    rows, outputs = left.shape[0], right.shape[0]
    inputs_missing, outputs_missing = -left.shape[1] % 8, -outputs % 8
    rows_missing = max(CUDA_MINIMUM_ROWS - rows, -rows % 8)
    left = functional.pad(left, (0, inputs_missing, 0, rows_missing))
    right = (
        functional.pad(right, (0, inputs_missing, 0, outputs_missing)) if inputs_missing or outputs_missing else right
    )
    return torch._int_mm(left, right.t())[:rows, :outputs]


def weight_only_product(input: Tensor, packed: PackedWeight, cache: dict[str, Any]) -> Tensor | None:
    """input [..., in] times the packed weight, or None where dequantising first is the way.

    In bfloat16, small products use PyTorch's int4 kernel (groups of 32, 64, 128 or 256), on the CPU and on CUDA, or the
    CPU's int8 kernel (one scale per output), which read the integers instead of a dequantised copy.
    """
    kind = input.device.type
    if input.dtype != torch.bfloat16 or not _pays(input, packed):
        return None
    if packed.spec.bits == 4 and packed.spec.group_size in (32, 64, 128, 256) and _has_int4_tiles(packed, kind):
        return _int4_product(input, packed, cache)
    if kind == "cpu" and multiplies_int8(packed) and packed.scale_rows == packed.rows:
        return _int8_weight_product(input, packed, cache)
    return None


def _pays(input: Tensor, packed: PackedWeight) -> bool:
    rows = input.numel() // input.shape[-1]
    if input.device.type == "cuda":
        return rows * packed.rows * packed.features <= CUDA_MULTIPLICATIONS
    return input.device.type == "cpu" and rows <= CPU_ROWS


def _has_int4_tiles(packed: PackedWeight, kind: str) -> bool:
    if kind == "cpu":
        return packed.rows % 16 == 0
    return packed.rows % 8 == 0 and packed.features % (16 * CUDA_INNER_TILES) == 0


def _int4_product(input: Tensor, packed: PackedWeight, cache: dict[str, Any]) -> Tensor:
    kind = f"int4 {input.device}"
    if kind not in cache:
        cache[kind] = _int4_operands(packed)
    weight, scale_and_zero = cache[kind]
    flat = input.reshape(-1, packed.features)
    multiply = torch.ops.aten._weight_int4pack_mm if input.is_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
    product = multiply(flat, weight, packed.spec.group_size, scale_and_zero)
    return product.view(*input.shape[:-1], packed.rows)


def _int4_operands(packed: PackedWeight) -> tuple[Tensor, Tensor]:
    """PyTorch's layout: codes c from 0 to 15, and w = (c - 8) scale + offset in [groups, out, 2] bfloat16."""
    quantized = packed.unpacked()
    codes = (quantized.codes.view(packed.rows, -1) + 8).to(torch.int32)
    offset = torch.zeros_like(quantized.scale)
    if quantized.zero_point is not None:  # w = (q - Z) S, q = c - 8
        offset = -quantized.zero_point * quantized.scale
    if quantized.minimum is not None:  # w = c S + minimum
        offset = 8 * quantized.scale + quantized.minimum
    pair = torch.stack((quantized.scale, offset), -1).squeeze(2).transpose(0, 1).contiguous()
    pair = pair.to(torch.bfloat16)
    if codes.is_cuda:  # takes two codes to a byte, the first one in the high half
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        return torch.ops.aten._convert_weight_to_int4pack(pairs, CUDA_INNER_TILES), pair
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), pair


def _int8_weight_product(input: Tensor, packed: PackedWeight, cache: dict[str, Any]) -> Tensor | None:
    """sum x S (q - Z) = S sum x q - S Z sum x, the first sum by the kernel.

    The kernel rounds its sum to bfloat16, so zero points far from 0, whose two sums nearly cancel, are left to
    dequantising.
    """
    if "int8" not in cache:
        scale = packed.scale.reshape(-1).float()
        zero = torch.zeros_like(scale) if packed.zero_point is None else packed.zero_point.reshape(-1).float()
        cache["int8"] = (scale.to(torch.bfloat16), scale * zero) if zero.abs().max() <= NEAR_ZERO else None
    if cache["int8"] is None:
        return None
    scale, offset = cache["int8"]
    flat = input.reshape(-1, packed.features)
    product = torch._weight_int8pack_mm(flat, packed.codes, scale)
    product = product.float() - flat.float().sum(-1, keepdim=True) * offset
    return product.to(input.dtype).view(*input.shape[:-1], packed.rows)
