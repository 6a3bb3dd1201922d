"""llama.cpp's block formats q8_0, q4_0 and q4_1, bit for bit (ggml-quants.c: quantize_row_*_ref), and its K-quants.

Blocks of 32 values; scales (and q4_1's minimum) are stored as float16, but codes are computed with the float32 scale.
The K-quants q4_k and q6_k are rounded here by each group's extremes, codes with the scale that is stored; llama.cpp
searches for theirs, as does `super_block_search`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgequant.quantization.arithmetic.half_precision import rounded_to_float16
from edgequant.quantization.arithmetic.super_blocks import minimum_factors, scale_factors
from edgequant.quantization.weight_spec import ggml_spec


def quantize(blocks: Tensor, layout: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantise blocks [rows, blocks, 32] float32, q6_k's [rows, blocks, 16].

    Returns:
        codes int8 (q4_*: -8 to 7, q6_k: -32 to 31), scale [rows, blocks, 1] (q4_0's and q6_k's may be negative) and,
        for q4_1 and q4_k only, the minimum: value = scale * code, and for these value = scale * (code + 8) + minimum.
    """
    return {"q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1, "q4_k": _q4_k, "q6_k": _q6_k}[layout](blocks)


def _q8_0(blocks: Tensor) -> tuple[Tensor, Tensor, None]:
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    codes = torch.trunc(scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled))  # C's roundf: half away from 0
    return codes.to(torch.int8), rounded_to_float16(scale), None


def _q4_0(blocks: Tensor) -> tuple[Tensor, Tensor, None]:
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))  # with its sign
    scale = largest / -8
    codes = torch.trunc(blocks * _inverse(scale) + 8.5).clamp(max=15)
    return (codes - 8).to(torch.int8), rounded_to_float16(scale), None


def _q4_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    minimum = blocks.amin(-1, keepdim=True)
    scale = (blocks.amax(-1, keepdim=True) - minimum) / 15
    codes = torch.trunc((blocks - minimum) * _inverse(scale) + 0.5).clamp(max=15)
    return (codes - 8).to(torch.int8), rounded_to_float16(scale), rounded_to_float16(minimum)


def _q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    spec = ggml_spec("q4_k")
    low = blocks.amin(-1, keepdim=True).clamp(max=0.0)
    scale = scale_factors((blocks.amax(-1, keepdim=True) - low) / 15, spec).values()
    minimum = minimum_factors(low, spec).values()
    codes = torch.round((blocks - minimum) / scale).clamp(0, 15)
    return (codes - 8).to(torch.int8), scale, minimum


def _q6_k(blocks: Tensor) -> tuple[Tensor, Tensor, None]:
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))  # with its sign
    scale = scale_factors(largest / -32, ggml_spec("q6_k")).values()
    return torch.round(blocks / scale).clamp(-32, 31).to(torch.int8), scale, None


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale != 0, 1 / scale, torch.zeros_like(scale))
