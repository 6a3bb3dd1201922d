"""The integers of a weight as they lie in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from edgequant.quantization.arithmetic.affine import (
    QuantizedWeight,
    dequantize_weight,
    fixed_zero_point,
)
from edgequant.quantization.arithmetic.packing import (
    pack,
    pack_ternary,
    packed_length,
    packed_ternary_length,
    unpack,
    unpack_ternary,
)
from edgequant.quantization.arithmetic.range_search import quantize_clipped
from edgequant.quantization.arithmetic.super_blocks import Factors, minimum_factors, scale_factors
from edgequant.quantization.weight_spec import SUPER_BLOCK, WeightSpec

STORAGE = {"float16": torch.float16, "float32": torch.float32}
HALF_OF_SIX_BITS = 32  # packed integers are signed, q4_k's 0 to 63


class FixedDtypeBuffers(nn.Module):
    """Buffers follow moves between devices but stay out of casts: a scale rounded to bfloat16 is another scale."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


class PackedWeight(FixedDtypeBuffers):
    """The integers of a weight [rows, features] as they lie in the checkpoint.

    Buffers: `codes` [rows, bytes] (uint8, or int8 at 8 bits; ternary ones five to a byte), `scale` [rows, groups], and,
    where the spec has them,
    `zero_point` [rows, bytes] (packed like the codes) or `minimum` [rows, groups]. They keep their types under
    `.to(dtype)`.

    Of a K-quant `scale` and `minimum` are factors of super-blocks [rows, super-blocks], the integers that they multiply
    `group_scale` (q4_k's six-bit ones packed, q6_k's int8) and `group_minimum` [rows, bytes]. `unpacked` multiplies.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    minimum: Tensor | None
    group_scale: Tensor | None
    group_minimum: Tensor | None

    def __init__(self, rows: int, features: int, spec: WeightSpec, device: Any = None) -> None:
        super().__init__()
        self.rows, self.features, self.spec = rows, features, spec
        self.scale_rows = 1 if spec.granularity == "tensor" else rows
        self.groups = features // spec.group_size if spec.group_size else 1
        storage, code_type = STORAGE[spec.scale_dtype], torch.int8 if spec.bits == 8 else torch.uint8
        zeros = {"device": device}
        length = packed_ternary_length(features) if spec.levels == 3 else packed_length(features, spec.bits)
        self.register_buffer("codes", torch.zeros(rows, length, dtype=code_type, **zeros))
        scales = (self.scale_rows, features // SUPER_BLOCK if spec.is_k_quant else self.groups)
        self.register_buffer("scale", torch.zeros(scales, dtype=storage, **zeros))
        zero_point = torch.zeros(self.scale_rows, packed_length(self.groups, spec.bits), dtype=code_type, **zeros)
        self.register_buffer("zero_point", zero_point if spec.zero_point == "integer" else None)
        minimum = torch.zeros(scales, dtype=storage, **zeros)
        self.register_buffer("minimum", minimum if spec.zero_point == "real" else None)
        six_bits = torch.zeros(rows, packed_length(self.groups, 6), dtype=torch.uint8, **zeros)
        eight_bits = torch.zeros(rows, self.groups, dtype=torch.int8, **zeros)
        self.register_buffer("group_scale", {"q4_k": six_bits, "q6_k": eight_bits}.get(spec.layout))
        self.register_buffer("group_minimum", six_bits.clone() if spec.layout == "q4_k" else None)

    @staticmethod
    def of(quantized: QuantizedWeight, rows: int, features: int, spec: WeightSpec) -> PackedWeight:
        """Pack quantised integers; scales are already representable in their storage type."""
        packed = PackedWeight(rows, features, spec, device=quantized.codes.device)
        codes = quantized.codes.reshape(rows, features)
        packed.codes = pack_ternary(codes) if spec.levels == 3 else pack(codes, spec.bits)
        if spec.is_k_quant:
            packed._take_factors(quantized)
            return packed
        packed.scale = quantized.scale.reshape(packed.scale.shape).to(packed.scale.dtype)
        if packed.zero_point is not None and quantized.zero_point is not None:
            packed.zero_point = pack(quantized.zero_point.reshape(packed.scale.shape).to(torch.int8), spec.bits)
        if packed.minimum is not None and quantized.minimum is not None:
            packed.minimum = quantized.minimum.reshape(packed.scale.shape).to(packed.minimum.dtype)
        return packed

    @staticmethod
    def nearest(weight: Tensor, spec: WeightSpec) -> PackedWeight:
        """A real weight [rows, features] on the grid with the least squared error."""
        rows, features = weight.shape
        return PackedWeight.of(quantize_clipped(weight, spec), rows, features, spec)

    def factors(self, rows: Tensor | None = None) -> tuple[Factors, Factors | None]:
        """What a K-quant's scales and, where it has them, minima are stored as, of all rows or those of an index."""
        weight = self.unpacked(rows)
        minimum = None if weight.minimum is None else minimum_factors(weight.minimum, self.spec)
        return scale_factors(weight.scale, self.spec), minimum

    def _take_factors(self, quantized: QuantizedWeight) -> None:
        scale = scale_factors(quantized.scale, self.spec)
        self.scale = scale.factor[..., 0].to(self.scale.dtype)
        self.group_scale = _pack_factors(scale.integers, self.spec)
        if quantized.minimum is not None:
            minimum = minimum_factors(quantized.minimum, self.spec)
            self.minimum = minimum.factor[..., 0].to(self.scale.dtype)
            self.group_minimum = _pack_factors(minimum.integers, self.spec)

    def unpacked(self, rows: Tensor | None = None) -> QuantizedWeight:
        """The integers as the arithmetic sees them, all of them or the rows of an index tensor [n]."""

        def take(stored: Tensor | None) -> Tensor | None:
            return stored if stored is None or rows is None or self.scale_rows == 1 else stored[rows]

        codes = self.codes if rows is None else self.codes[rows]
        if self.spec.levels == 3:
            codes = unpack_ternary(codes, self.features)
        else:
            codes = unpack(codes, self.spec.bits, self.features)
        stored, zero_point, minimum = take(self.scale), take(self.zero_point), take(self.minimum)
        assert stored is not None
        if self.spec.is_k_quant:
            stored = self._multiplied(stored, take(self.group_scale))
            minimum = None if minimum is None else self._multiplied(minimum, take(self.group_minimum))
        scale = stored.float()[..., None]
        if zero_point is None:
            zero_point = fixed_zero_point(scale, self.spec)
        else:
            zero_point = unpack(zero_point, self.spec.bits, self.groups).float()[..., None]
        shape = (1, 1, -1) if self.scale_rows == 1 and self.rows > 1 else (codes.shape[0], self.groups, -1)
        minimum = None if minimum is None else minimum.float()[..., None]
        return QuantizedWeight(codes.view(shape), scale, zero_point, minimum)

    def _multiplied(self, factor: Tensor, packed: Tensor | None) -> Tensor:
        """What factors of super-blocks and packed integers stand for, [rows, groups]."""
        assert packed is not None
        integers = _unpack_factors(packed, self.spec, self.groups).view(*factor.shape, -1)
        return Factors(factor.float()[..., None], integers.float()).values()[..., 0]

    def zero_points(self) -> Tensor | None:
        """The integer zero points, [scale rows, groups] int8; None where real 0 is integer 0 or there is a minimum."""
        return None if self.zero_point is None else unpack(self.zero_point, self.spec.bits, self.groups)

    def at_whole_levels(self) -> PackedWeight:
        """The same weight for layouts that know no half levels: integers -3, -1, 1, 3, half the scale in float32."""
        if not self.spec.has_half_levels:
            return self
        weight, spec = self.unpacked(), replace(self.spec, bits=3, scale_dtype="float32")
        odd = QuantizedWeight(2 * weight.codes + 1, weight.scale / 2)
        return PackedWeight.of(odd, self.rows, self.features, spec)

    def dequantized(self, dtype: torch.dtype = torch.float32, rows: Tensor | None = None) -> Tensor:
        """The real weight, [rows, features]."""
        count = self.rows if rows is None else rows.numel()
        return dequantize_weight(self.unpacked(rows), (count, self.features)).to(dtype)


def _pack_factors(integers: Tensor, spec: WeightSpec) -> Tensor:
    """A K-quant's integers that scales and minima are multiples of, [rows, groups] in whatever shape, to bytes."""
    flat = integers.flatten(1)
    return flat.to(torch.int8) if spec.layout == "q6_k" else pack((flat - HALF_OF_SIX_BITS).to(torch.int8), 6)


def _unpack_factors(packed: Tensor, spec: WeightSpec, groups: int) -> Tensor:
    """The inverse: [rows, groups]."""
    return packed if spec.layout == "q6_k" else unpack(packed, 6, groups) + HALF_OF_SIX_BITS
