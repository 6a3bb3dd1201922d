"""A weight back from its integers on the CPU: `PackedWeight.dequantized` to the bit, several times as fast.

Two codes a byte are unpacked by FBGEMM (`quantized::embedding_bag_4bit_unpack`), 8-bit codes converted, a piece at a
time that the caches hold. `StreamedWeight` reads what the checkpoint stores, `FusedWeight` keeps a second copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.layers.trusted_kernels import UNPACK, is_trusted, unpack_int4

PIECE = 1 << 19  # weights unpacked at a time: 2 MB as float32, of 0.5 to 4 MB the fastest on an AMD EPYC
PIECE_FOR_MANY = 1 << 21  # the products of many rows are large, and have to be put together


class UnpackedWeight(ABC):
    """A weight [rows, features] that becomes float32 row by row."""

    rows: int
    features: int

    @abstractmethod
    def real(self, rows: slice) -> Tensor:
        """Some rows of the real weight, [n, features] float32, in memory of their own."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What is held, the checkpoint's own tensors among it."""

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """input [..., features] times the weight transposed, plus the bias [rows], in the input's type."""
        return joined(
            functional.linear(input, self.real(rows).to(input.dtype), None if bias is None else bias[rows])
            for rows in self.pieces(PIECE_FOR_MANY)
        )

    def product_of_few(self, input: Tensor) -> Tensor:
        """input [..., features] float32 times the weight transposed, [..., rows] float32, for few rows of input."""
        return joined(self._product(input, rows) for rows in self.pieces(PIECE))

    def _product(self, input: Tensor, rows: slice) -> Tensor:
        return functional.linear(input, self.real(rows))

    def pieces(self, weights: int) -> Iterator[slice]:
        """Slices of rows that hold so many weights together."""
        step = max(1, weights // self.features)
        return (slice(start, start + step) for start in range(0, self.rows, step))


@dataclass(frozen=True)
class StreamedWeight(UnpackedWeight):
    """W = (q + first - Z) S + minimum for unsigned 4-bit codes q, or signed 8-bit ones.

    Attributes:
        codes: [rows, features / 2] uint8, or [rows, features] int8.
        first: what 4-bit code 0 stands for.
        zero_point: Z [rows, groups] int8, or None.
        scale, minimum: [rows, groups], as stored; no minimum is None.
        row_scale: [rows] float32, S where a row has only one, and 0 in rows of zeros; else None.
    """

    rows: int
    features: int
    codes: Tensor
    first: float
    zero_point: Tensor | None
    scale: Tensor
    minimum: Tensor | None
    row_scale: Tensor | None

    @staticmethod
    def of(packed: PackedWeight) -> StreamedWeight | None:
        """None where there is no fast way: not on the CPU, other widths than 4 and 8 bits, one scale for all rows, odd
        rows of 4 bits, an unpacking that is not trusted.
        """
        device, bits = packed.codes.device, packed.spec.bits
        if device.type != "cpu" or bits not in (4, 8) or packed.scale_rows != packed.rows:
            return None
        if bits == 4 and (packed.features % 2 or not is_trusted(UNPACK, device)):
            return None
        with torch.inference_mode(False), torch.no_grad():  # kept, so it may serve a pass with gradients later
            row_scale = row_scale_of(packed)
            zero_point = packed.zero_points()
        first = 0.0 if packed.minimum is not None else -8.0
        return StreamedWeight(
            packed.rows, packed.features, packed.codes, first, zero_point, packed.scale, packed.minimum, row_scale
        )

    def tensors(self) -> list[Tensor]:
        held = (self.codes, self.zero_point, self.scale, self.minimum, self.row_scale)
        return [part for part in held if part is not None]

    def real(self, rows: slice) -> Tensor:
        real = self._integers(rows)
        groups = real.view(real.shape[0], self.scale.shape[1], -1)
        if self.zero_point is not None:
            groups -= self.zero_point[rows, :, None].float()
        groups *= self.scale[rows, :, None].float()
        if self.minimum is not None:
            groups += self.minimum[rows, :, None].float()
        return real

    def _product(self, input: Tensor, rows: slice) -> Tensor:
        """A row's only scale multiplies its product: S (sum x q - Z sum x), since the weight is what is large."""
        if self.row_scale is None:
            return super()._product(input, rows)
        product = functional.linear(input, self._integers(rows))
        if self.zero_point is not None:
            product = product - input.sum(-1, keepdim=True) * self.zero_point[rows].view(-1).float()
        return product * self.row_scale[rows]

    def _integers(self, rows: slice) -> Tensor:
        codes = self.codes[rows]
        return codes.float() if codes.dtype == torch.int8 else unpack_int4(codes, self.first)


def row_scale_of(packed: PackedWeight) -> Tensor | None:
    """The only scale of each row, [rows] float32; None where there are groups.

    0 for a row of zeros, whose scale is 1, by which the difference of its two sums must not be multiplied.
    """
    if packed.groups > 1 or packed.minimum is not None:
        return None
    weight = packed.unpacked()
    is_zero = (weight.codes == (0 if weight.zero_point is None else weight.zero_point)).all(-1)
    return weight.scale.squeeze(-1).masked_fill(is_zero, 0.0).view(-1)


def joined(parts: Iterator[Tensor]) -> Tensor:
    """Products [..., rows] of pieces, side by side."""
    first, *others = parts
    return torch.cat([first, *others], dim=-1) if others else first
