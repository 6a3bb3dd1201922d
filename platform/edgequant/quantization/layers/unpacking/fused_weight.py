"""Integers of a weight in FBGEMM's layout, which becomes float32 in one pass: codes, scale and offset side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from edgequant.quantization.arithmetic.packing import pack
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.layers.trusted_kernels import UNPACK, is_trusted, unpack_fused
from edgequant.quantization.layers.unpacking import unpacked_weight
from edgequant.quantization.layers.unpacking.unpacked_weight import UnpackedWeight, joined


@dataclass(frozen=True)
class FusedWeight(UnpackedWeight):
    """W = q S + B + residue for unsigned codes q of 4 or 8 bits in groups of N, each followed by its S and B.

    A second copy of 4 + 32/N or 8 + 64/N bits a weight, and 32/N for a residue.

    Attributes:
        fused: [rows, groups, bytes] uint8: a group's codes, then S and B, float16 with 4-bit codes, float32 with 8-bit.
        residue: what B loses in float16, [groups, rows] float32; None where it loses nothing.
    """

    rows: int
    features: int
    groups: int
    bits: int
    fused: Tensor
    residue: Tensor | None
    _parts: tuple[Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = tuple(self.fused[rows].flatten(0, 1) for rows in self.pieces(unpacked_weight.PIECE))
        object.__setattr__(self, "_parts", parts)  # taken apart once: it takes as long as a small product

    @staticmethod
    def of(packed: PackedWeight) -> FusedWeight | None:
        """None where there is no such layout: not on the CPU, no groups with float16 scales, odd groups, offsets beyond
        float16, an unpacking that is not trusted.
        """
        groups, device = packed.groups, packed.codes.device
        if device.type != "cpu" or groups == 1 or packed.scale.dtype != torch.float16:
            return None
        if (packed.features // groups) % 2 or not is_trusted(UNPACK, device):
            return None
        with torch.inference_mode(False), torch.no_grad():  # kept, so it may serve a pass with gradients later
            return _of_bytes(packed) if packed.spec.bits > 4 else _of_nibbles(packed)

    def tensors(self) -> list[Tensor]:
        return [self.fused] if self.residue is None else [self.fused, self.residue]

    def real(self, rows: slice) -> Tensor:
        real = unpack_fused(self.fused[rows].flatten(0, 1), self.bits).view(-1, self.features)
        if self.residue is not None:
            real.view(real.shape[0], self.groups, -1).add_(self.residue.t()[rows, :, None])
        return real

    def product_of_few(self, input: Tensor) -> Tensor:
        """The residue multiplies sums over groups of inputs, since the weight is what is large."""
        weights = (unpack_fused(part, self.bits).view(-1, self.features) for part in self._parts)
        product = joined(functional.linear(input, weight) for weight in weights)
        if self.residue is None:
            return product
        sums = input.view(-1, self.groups, self.features // self.groups).sum(-1)
        return torch.addmm(product.view(-1, self.rows), sums, self.residue).view(product.shape)


def _of_nibbles(packed: PackedWeight) -> FusedWeight | None:
    """-8 S (or -7.5 S, with half levels) less Z S as the offset: 15 bits, of which float16 holds 11."""
    weight = packed.unpacked()
    scale, minimum = weight.scale.squeeze(-1), weight.minimum
    if minimum is not None:
        offset = minimum.squeeze(-1)
    else:
        offset = scale * (-8 if weight.zero_point is None else -8 - weight.zero_point.squeeze(-1))
    rounded = offset.half()
    residue = offset - rounded.float()
    if not torch.equal(rounded.float() + residue, offset):  # beyond float16
        return None
    codes = packed.codes if packed.spec.bits == 4 else pack(weight.codes.reshape(packed.rows, packed.features), 4)
    return _fused(packed, codes, (scale.half(), rounded), residue.t().contiguous() if residue.any() else None, bits=4)


def _of_bytes(packed: PackedWeight) -> FusedWeight:
    weight = packed.unpacked()
    scale = weight.scale.squeeze(-1)
    offset = scale * (-128 if weight.zero_point is None else -128 - weight.zero_point.squeeze(-1))  # exact: 20 bits
    codes = weight.codes.reshape(packed.rows, packed.features).view(torch.uint8) ^ 128
    return _fused(packed, codes, (scale, offset), None, bits=8)


def _fused(
    packed: PackedWeight, codes: Tensor, parameters: tuple[Tensor, Tensor], residue: Tensor | None, bits: int
) -> FusedWeight:
    ending = torch.stack(parameters, -1).contiguous().view(torch.uint8)
    fused = torch.cat((codes.view(packed.rows, packed.groups, -1), ending), -1)
    return FusedWeight(packed.rows, packed.features, packed.groups, bits, fused, residue)
