"""GPTQ's layout of a weight, as AutoGPTQ wrote it and gptqmodel, vLLM and onnxruntime-genai's builder read it.

`qweight` int32 [features * bits / 32, rows]: along the inputs, low bits first, codes from 0 on. `qzeros` int32 [groups,
rows * bits / 32]: along the outputs, and one less than the zero point in the format `gptq`, the zero point itself in
`gptq_v2`. `scales` float16 [groups, rows]. `g_idx` int32 [features]: the group of each input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgequant.quantization.layers.packed_weight import PackedWeight

LESS_ONE, AS_IT_IS = "gptq", "gptq_v2"  # checkpoint formats: how zero points lie


def zero_points(packed: PackedWeight) -> Tensor:
    """[groups, rows], from 0 on; symmetric weights have the middle everywhere."""
    middle = 2 ** (packed.spec.bits - 1)
    found = packed.unpacked().zero_point
    if found is None:
        return torch.full((packed.groups, packed.rows), middle, dtype=torch.int64)
    return found[..., 0].T.cpu().to(torch.int64) + middle


def gptq_tensors(packed: PackedWeight, checkpoint_format: str) -> dict[str, Tensor]:
    """The four tensors of a weight; no number changes."""
    bits, features = packed.spec.bits, packed.features
    codes = packed.unpacked().codes.reshape(packed.rows, features).cpu().to(torch.int64) + 2 ** (bits - 1)
    zeros = zero_points(packed) - int(checkpoint_format == LESS_ONE)
    return {
        "qweight": _words(codes, bits).T.contiguous(),
        "qzeros": _words(zeros, bits),
        "scales": packed.scale.T.cpu().contiguous(),
        "g_idx": torch.arange(features, dtype=torch.int32) // (features // packed.groups),
    }


def _words(values: Tensor, bits: int) -> Tensor:
    """Pack [..., n] along the last dimension into int32 [..., n * bits / 32], low bits first."""
    shifts = bits * torch.arange(32 // bits)
    unsigned = (values.unflatten(-1, (-1, 32 // bits)) << shifts).sum(-1)
    return torch.where(unsigned < 2**31, unsigned, unsigned - 2**32).to(torch.int32)


def words_of(words: Tensor, bits: int) -> Tensor:
    """The inverse along the last dimension: values from 0 on, int64."""
    shifts = bits * torch.arange(32 // bits)
    return ((words.to(torch.int64)[..., None] >> shifts) & (2**bits - 1)).flatten(-2)
