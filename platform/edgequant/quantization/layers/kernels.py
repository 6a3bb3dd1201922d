"""Which product runs where: the seam for faster kernels. Each says when it applies; the caller has a fallback."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from edgequant.quantization.layers.trusted_kernels import (
    CUDA_INNER_TILES,
    INT4_WEIGHT,
    INT8_WEIGHT,
    int4_kernel,
    int4_layout,
    int8_kernel,
    int8_weight_kernel,
    is_trusted,
)
from edgequant.quantization.layers.unpacking.fused_weight import FusedWeight
from edgequant.quantization.layers.unpacking.int8_products import HalvedProduct, exact_int8_product
from edgequant.quantization.layers.unpacking.kernel_speed import multiplies_int8_fast, reads_integers_fast
from edgequant.quantization.layers.unpacking.unpacked_weight import StreamedWeight, UnpackedWeight, row_scale_of

if TYPE_CHECKING:
    from edgequant.quantization.layers.packed_weight import PackedWeight
    from edgequant.quantization.layers.quantized_input import QuantizedInput

CPU_ROWS = 4  # up to here a row-at-a-time kernel beats dequantising the matrix for a large product
CUDA_MULTIPLICATIONS = 4e9  # likewise: on an H100 the int4 kernel then takes the 0.3 ms that dequantising does


def multiplies_int8(packed: PackedWeight) -> bool:
    """Whether weight and input can be multiplied as int8: 8-bit codes and one scale for each output."""
    return packed.spec.bits == 8 and packed.groups == 1 and packed.minimum is None


def int8_product(left: QuantizedInput, codes: Tensor, cache: dict[str, Any]) -> Tensor:
    """An input's int8 codes [m, k] times codes [n, k] int8 transposed: [m, n] int32, exact.

    By the kernel where it is trusted and fast; on the CPU else by FBGEMM's; else as float32.
    """
    if multiplies_int8_fast(codes.device):
        return int8_kernel(left.int8, codes)
    if left.int8.numel() and not torch.compiler.is_compiling():
        halved = _kept("int8 halves", codes, cache, partial(HalvedProduct.of, codes))
        if halved is not None:
            return halved.product(left.halves)
    return exact_int8_product(left.int8, codes)


def zero_points_and_sums(packed: PackedWeight, cache: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """For int8 products: Z2 (or None where it is 0) and sum q2 - N Z2, int32, one for each output or for all."""
    return _kept("int8 sums", packed.codes, cache, partial(_zero_points_and_sums, packed))


def _zero_points_and_sums(packed: PackedWeight) -> tuple[Tensor | None, Tensor]:
    sums = packed.codes.sum(1, dtype=torch.int32)
    if packed.zero_point is None:
        return None, sums
    zero_point = packed.zero_point.reshape(-1).to(torch.int32)
    return zero_point, sums - packed.features * zero_point


def weight_only_linear(input: Tensor, packed: PackedWeight, bias: Tensor | None, cache: dict[str, Any]) -> Tensor:
    """input [..., in] times the packed weight, plus a bias [out] of the input's type.

    The first of these that applies: a kernel that reads the integers; on the CPU, the weight unpacked a piece at a
    time, for few rows multiplied as float32 whatever the input's type; the whole weight dequantised.
    """
    product = _kernel_product(input, packed, cache)
    if product is not None:
        return product if bias is None else product + bias
    few = _rows(input) <= CPU_ROWS
    unpacked = None if torch.compiler.is_compiling() else _unpacked(packed, cache, few=few)
    if unpacked is None:
        return functional.linear(input, packed.dequantized(input.dtype), bias)
    if not few:
        return unpacked.linear(input, bias)
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            product = unpacked.product_of_few(input.float())
    else:  # entering a context takes as long as a small product
        product = unpacked.product_of_few(input.float())
    return (product if bias is None else product + bias.float()).to(input.dtype)


def _unpacked(packed: PackedWeight, cache: dict[str, Any], *, few: bool) -> UnpackedWeight | None:
    """The copy in FBGEMM's layout for few rows in groups, and where there is nothing else; else as it is stored.

    None for K-quants, whose scales are products that neither reads.
    """
    if packed.spec.is_k_quant:
        return None
    if (few and packed.groups > 1) or packed.spec.bits not in (4, 8):
        fused = _kept("fused", packed.codes, cache, partial(FusedWeight.of, packed))
        if fused is not None:
            return fused
    return _kept("streamed", packed.codes, cache, partial(StreamedWeight.of, packed))


def tensors_of(cache: dict[str, Any]) -> list[Tensor]:
    """The tensors that a cache of kernels' operands holds."""
    kept = [
        value.tensors() if isinstance(value, UnpackedWeight | HalvedProduct) else value or ()
        for _, value in cache.values()
    ]
    return [part for parts in kept for part in parts if isinstance(part, Tensor)]


def _kept(kind: str, codes: Tensor, cache: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What `make` made of a weight, made again where the weight's integers have become others."""
    found, compiling = cache.get(kind), torch.compiler.is_compiling()
    state = (codes, None if compiling else _version(codes))
    if found is None or not (compiling or (found[0][0] is state[0] and found[0][1] == state[1])):
        found = cache[kind] = (state, make())
    return found[1]


def _version(tensor: Tensor) -> int:
    """Counts changes in place; tensors made in inference mode count none."""
    return 0 if tensor.is_inference() else tensor._version


def _kernel_product(input: Tensor, packed: PackedWeight, cache: dict[str, Any]) -> Tensor | None:
    """The product by PyTorch's int4 kernel (groups of 32, 64, 128 or 256), on the CPU and on CUDA, or by the CPU's int8
    kernel (one scale per output), for small products in bfloat16, each where it is trusted and, on the CPU, faster.
    """
    if input.dtype != torch.bfloat16 or not _is_faster(input, packed):
        return None
    if _fits_int4(packed, input.device.type):
        return _int4_product(input, packed, cache) if is_trusted(INT4_WEIGHT, input.device) else None
    if input.device.type == "cpu" and multiplies_int8(packed) and packed.scale_rows == packed.rows:
        return _int8_weight_product(input, packed, cache) if is_trusted(INT8_WEIGHT, input.device) else None
    return None


def _is_faster(input: Tensor, packed: PackedWeight) -> bool:
    if input.device.type == "cuda":
        return _rows(input) * packed.rows * packed.features <= CUDA_MULTIPLICATIONS
    return input.device.type == "cpu" and _rows(input) <= CPU_ROWS and reads_integers_fast(input.device)


def _rows(input: Tensor) -> int:
    return input.numel() // input.shape[-1]


def _fits_int4(packed: PackedWeight, kind: str) -> bool:
    if packed.spec.group_size not in (32, 64, 128, 256):
        return False
    if kind == "cpu":
        return packed.rows % 16 == 0
    return packed.spec.bits == 4 and packed.rows % 8 == 0 and packed.features % (16 * CUDA_INNER_TILES) == 0


def _int4_product(input: Tensor, packed: PackedWeight, cache: dict[str, Any]) -> Tensor:
    weight, scale_and_zero = _kept("int4", packed.codes, cache, partial(_int4_operands, packed))
    flat = input.reshape(-1, packed.features)
    flat = torch.cat((flat, flat), -1) if packed.spec.bits > 4 else flat
    product = int4_kernel(flat, weight, packed.features // packed.groups, scale_and_zero)
    return product.view(*input.shape[:-1], packed.rows)


def _int4_operands(packed: PackedWeight) -> tuple[Tensor, Tensor]:
    """PyTorch's layout: codes c from 0 to 15, and w = (c - 8) scale + offset in [groups, out, 2] bfloat16.

    Integers of 5 to 8 bits are two of 4, q = 16 (h - 8) + l, for inputs twice: (h - 8) 16 S + (l - 8) S + 8 S - Z S.
    """
    quantized = packed.unpacked()
    codes, scale = (quantized.codes.view(packed.rows, -1)).to(torch.int32), quantized.scale
    offset = torch.zeros_like(scale)
    if quantized.zero_point is not None:  # w = (q - Z) S, q = c - 8
        offset = -quantized.zero_point * scale
    if quantized.minimum is not None:  # w = c S + minimum
        offset = 8 * scale + quantized.minimum
    if packed.spec.bits > 4:
        codes = torch.cat((codes >> 4, (codes & 15) - 8), 1)
        scale, offset = torch.cat((16 * scale, scale), 1), torch.cat((0 * offset, offset + 8 * scale), 1)
    pair = torch.stack((scale, offset), -1).squeeze(2).transpose(0, 1).contiguous()
    return int4_layout(codes + 8), pair.to(torch.bfloat16)


def _int8_weight_product(input: Tensor, packed: PackedWeight, cache: dict[str, Any]) -> Tensor:
    """With x = x' + m: S sum x (q - Z) = S (sum x' q - Z sum x' + m (sum q - N Z)), the first sum by the kernel.

    The kernel rounds its sum to bfloat16. m is a token's mean, so that sum x' is next to nothing: zero points far from
    0 would otherwise leave a small difference of large sums.
    """
    zero_point, weight_sums, scale, ones = _kept("int8", packed.codes, cache, partial(_int8_operands, packed))
    values = input.reshape(-1, packed.features).float()
    mean = values.mean(-1, keepdim=True)
    centered = (values - mean).to(input.dtype)
    product = int8_weight_kernel(centered, packed.codes, ones).float() + mean * weight_sums
    if zero_point is not None:
        product -= centered.sum(-1, keepdim=True, dtype=torch.float32) * zero_point
    return (product * scale).to(input.dtype).view(*input.shape[:-1], packed.rows)


def _int8_operands(packed: PackedWeight) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    zero_point, sums = _zero_points_and_sums(packed)
    scale = row_scale_of(packed)
    assert scale is not None  # one for each output
    return None if zero_point is None else zero_point.float(), sums.float(), scale, torch.ones_like(scale).bfloat16()
