"""Which product runs where: the seam for faster kernels. Each says when it applies; the caller has a fallback."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgequant.quantization.layers.trusted_kernels import (
    CUDA_INNER_TILES,
    INT4_WEIGHT,
    INT8,
    INT8_WEIGHT,
    int4_kernel,
    int4_layout,
    int8_kernel,
    int8_weight_kernel,
    is_trusted,
)

if TYPE_CHECKING:
    from edgequant.quantization.layers.packed_weight import PackedWeight

CPU_ROWS = 4  # up to here a row-at-a-time kernel beats dequantising the matrix for a large product
CUDA_MULTIPLICATIONS = 4e9  # likewise: on an H100 the int4 kernel then takes the 0.3 ms that dequantising does
NEAR_ZERO = 32  # int8 zero points up to here lose no more than two bits to cancellation
EXACT_INPUTS = 1024  # 1,024 x 128 x 128 = 2^24: up to here float32 holds every integer
EXACT_OUTPUTS = 512  # with 1,024 inputs 2 MB as float32, about a core's cache


def multiplies_int8(packed: PackedWeight) -> bool:
    """Whether weight and input can be multiplied as int8: 8-bit codes and one scale for each output."""
    return packed.spec.bits == 8 and packed.groups == 1 and packed.minimum is None


def int8_product(left: Tensor, right: Tensor) -> Tensor:
    """left [m, k] int8 times right [n, k] int8 transposed: [m, n] int32, exact, by the kernel where it is trusted."""
    if is_trusted(INT8, left.device):
        return int8_kernel(left, right)
    return exact_int8_product(left, right)


def exact_int8_product(left: Tensor, right: Tensor) -> Tensor:
    """The same without an integer kernel: float32 products of at most 1,024 inputs, summed as int32.

    Each partial sum, in whatever order, is an integer of at most 1,024 x 128 x 128 = 2^24, which float32 holds. Where
    a setting has float32 products computed in bfloat16 or TF32, these hold int8 too. int32 asks for k below 2^17.

    512 outputs at a time stay in the cache as floats. On an AMD EPYC under ONEDNN_MAX_CPU_ISA=AVX2, one thread, 1, 16,
    256 rows times 49,152 x 576 take 9, 17, 189 ms; by `torch._int_mm` on 7-bit halves of `right`, also exact, 20, 33,
    239 ms; by the wrong kernel 8, 12, 109 ms. With 576 x 1,536: 0.19, 0.51, 5.2 and 0.28, 0.51, 4.5 and 0.1, 0.2, 2.7.
    """
    with torch.autocast(left.device.type, enabled=False):
        parts = left.float().split(EXACT_INPUTS, dim=1)
        return torch.cat([_sum_of_products(parts, rows.float()) for rows in right.split(EXACT_OUTPUTS)], dim=1)


def _sum_of_products(parts: tuple[Tensor, ...], right: Tensor) -> Tensor:
    pairs = zip(parts, right.split(EXACT_INPUTS, dim=1), strict=True)
    return reduce(torch.add, ((part @ other.t()).to(torch.int32) for part, other in pairs))


def weight_only_product(input: Tensor, packed: PackedWeight, cache: dict[str, Any]) -> Tensor | None:
    """input [..., in] times the packed weight, or None where dequantising first is the way.

    In bfloat16, small products use PyTorch's int4 kernel (groups of 32, 64, 128 or 256), on the CPU and on CUDA, or the
    CPU's int8 kernel (one scale per output), which read the integers instead of a dequantised copy; each where it is
    trusted.
    """
    if input.dtype != torch.bfloat16 or not _is_faster(input, packed):
        return None
    if _fits_int4(packed, input.device.type):
        return _int4_product(input, packed, cache) if is_trusted(INT4_WEIGHT, input.device) else None
    if input.device.type == "cpu" and multiplies_int8(packed) and packed.scale_rows == packed.rows:
        return _int8_weight_product(input, packed, cache) if is_trusted(INT8_WEIGHT, input.device) else None
    return None


def _is_faster(input: Tensor, packed: PackedWeight) -> bool:
    rows = input.numel() // input.shape[-1]
    if input.device.type == "cuda":
        return rows * packed.rows * packed.features <= CUDA_MULTIPLICATIONS
    return input.device.type == "cpu" and rows <= CPU_ROWS


def _fits_int4(packed: PackedWeight, kind: str) -> bool:
    if packed.spec.bits != 4 or packed.spec.group_size not in (32, 64, 128, 256):
        return False
    if kind == "cpu":
        return packed.rows % 16 == 0
    return packed.rows % 8 == 0 and packed.features % (16 * CUDA_INNER_TILES) == 0


def _int4_product(input: Tensor, packed: PackedWeight, cache: dict[str, Any]) -> Tensor:
    kind = f"int4 {input.device}"
    if kind not in cache:
        cache[kind] = _int4_operands(packed)
    weight, scale_and_zero = cache[kind]
    flat = input.reshape(-1, packed.features)
    product = int4_kernel(flat, weight, packed.features // packed.groups, scale_and_zero)
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
    return int4_layout(codes), pair.to(torch.bfloat16)


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
    product = int8_weight_kernel(flat, packed.codes, scale)
    product = product.float() - flat.float().sum(-1, keepdim=True) * offset
    return product.to(input.dtype).view(*input.shape[:-1], packed.rows)
