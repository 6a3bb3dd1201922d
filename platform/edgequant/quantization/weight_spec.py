"""`WeightSpec`: how one weight matrix becomes integers, and what each of llama.cpp's layouts is. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Granularity = Literal["tensor", "channel", "group"]
ZeroPoint = Literal["none", "integer", "real"]
Layout = Literal["affine", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k"]

SUPER_BLOCK = 256  # inputs whose groups share a float16 scale of their scales, in llama.cpp's K-quants
# What takes a K-quant's place where the input features are no multiple of 256: groups of 32, as many bits or more.
IN_PLACE_OF: dict[Layout, Layout] = {"q4_k": "q4_1", "q6_k": "q8_0"}
K_QUANT_OF_BITS: dict[int, Layout] = {4: "q4_k", 6: "q6_k", 8: "q8_0"}  # what layers of a K-quant's scheme may be


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """How one weight matrix [out, in] becomes integers.

    Attributes:
        bits: width of an integer, 2 to 8.
        zero_point: `none` (symmetric: real 0 is integer 0, but see `has_half_levels`), `integer` (affine with an
            integer zero point, Jacob et al. 2017, equation 1) or `real` (affine with a real minimum, as llama.cpp's
            q4_1 and q4_k).
        granularity: one scale for the tensor, for an output channel, or for `group_size` inputs of an output channel.
        group_size: inputs that share a scale; with granularity `group` only.
        scale_dtype: how a scale is stored; its size counts.
        layout: `affine`, or the llama.cpp format that is followed bit for bit. Scales of its K-quants q4_k and q6_k are
            small integers times a float16 scale of 256 inputs (`arithmetic.super_blocks`), as are q4_k's minima.
        levels: 3 for ternary weights -S, 0, S, which lie five to a byte; None: all integers of `bits`.
    """

    bits: int
    zero_point: ZeroPoint = "integer"
    granularity: Granularity = "channel"
    group_size: int | None = None
    scale_dtype: Literal["float32", "float16"] = "float32"
    layout: Layout = "affine"
    levels: Literal[3] | None = None

    @property
    def integer_range(self) -> tuple[int, int]:
        """Lowest and highest integer, e.g. (-8, 7); symmetric 8-bit and ternary specs leave the lowest unused.

        That is what runtimes hold: -127 to 127 in TensorFlow Lite, XNNPACK and q8_0; -8 to 7 in torchao's and
        ExecuTorch's 8da4w, GPTQ's symmetric files, compressed-tensors and q4_0.
        """
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        narrow = self.zero_point == "none" and (self.bits == 8 or self.levels == 3)
        return (low + 1, high) if narrow else (low, high)

    @property
    def has_half_levels(self) -> bool:
        """Whether integer q stands for S (q + 1/2): symmetric specs of 2 bits, -3/2 S, -1/2 S, 1/2 S, 3/2 S.

        The levels of ParetoQ's stretched elastic quantisation (Liu et al. 2025, arXiv 2502.02631, section 4.2): of
        -2 S, -S, 0, S one would lie far out on one side only.
        """
        return self.zero_point == "none" and self.bits == 2 and self.levels is None

    @property
    def has_few_levels(self) -> bool:
        """Whether three or four symmetric levels stand for a group, too few to reach its extremes."""
        return self.zero_point == "none" and self.bits == 2

    @property
    def is_k_quant(self) -> bool:
        """Whether groups share a scale of their scales."""
        return self.layout in IN_PLACE_OF

    @property
    def can_change_bits(self) -> bool:
        """Whether layers may have other bits in the same scheme: not in ternary and in llama.cpp's older formats."""
        return self.is_k_quant or (self.layout == "affine" and self.levels is None)

    def with_bits(self, bits: int) -> WeightSpec:
        """The same kind of integers at another width; a K-quant's are those of `K_QUANT_OF_BITS`."""
        if bits == self.bits:
            return self
        return ggml_spec(K_QUANT_OF_BITS[bits]) if self.is_k_quant else replace(self, bits=bits)

    def fitting(self, in_features: int) -> WeightSpec:
        """What a weight of so many input features becomes: itself, or what takes the place of a K-quant."""
        if not self.is_k_quant or in_features % SUPER_BLOCK == 0:
            return self
        return ggml_spec(IN_PLACE_OF[self.layout])

    @property
    def divisor(self) -> int | None:
        """What has to divide the input features; None: anything will do."""
        return 32 if self.is_k_quant else self.group_size

    def bits_per_weight(self, in_features: int) -> float:
        """Stored bits per weight for rows of `in_features`, scales and zero points included."""
        if self.is_k_quant:
            per_group, per_super_block = {"q4_k": (6 + 6, 16 + 16), "q6_k": (8, 16)}[self.layout]
            return self.bits + per_group / (self.group_size or 1) + per_super_block / SUPER_BLOCK
        per_scale = {"group": self.group_size or in_features, "channel": in_features}.get(self.granularity, 1 << 30)
        scale = 16 if self.scale_dtype == "float16" else 32
        offset = {"none": 0, "integer": self.bits, "real": scale}[self.zero_point]
        return (8 / 5 if self.levels == 3 else self.bits) + (scale + offset) / per_scale


def ggml_spec(layout: Any) -> WeightSpec:
    """One of llama.cpp's layouts by its name."""
    bits = {"q8_0": 8, "q6_k": 6}.get(layout, 4)
    zero_point: ZeroPoint = "real" if layout in ("q4_1", "q4_k") else "none"
    size = 16 if layout == "q6_k" else 32
    return WeightSpec(
        bits=bits, zero_point=zero_point, granularity="group", group_size=size, scale_dtype="float16", layout=layout
    )
