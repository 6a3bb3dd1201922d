"""K-quants beside llama.cpp's own functions: its decoder reads the same numbers, its quantisation errs more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from k_quants_of_llama_cpp import KINDS, decoded, needs_llama_cpp, rounded

from edgequant.export.gguf.tensors import encode, encode_packed
from edgequant.quantization.arithmetic.affine import dequantize_weight
from edgequant.quantization.arithmetic.range_search import quantize_clipped
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.scheme import parse_scheme


@needs_llama_cpp
@pytest.mark.parametrize("layout", KINDS)
def test_llama_cpps_own_decoder_reads_what_the_checkpoint_says(layout) -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(6, 768, generator=generator)
    weight = normal * torch.tensor([[1e-7], [1e-3], [0.05], [1.0], [300.0], [0.0]])
    weight[2, 400], weight[3, :256] = 70.0, 0.0
    spec = parse_scheme(layout).weight
    assert spec is not None
    packed = PackedWeight.of(quantize_clipped(weight, spec), 6, 768, spec)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    stored = encode_packed(packed, order, layout)
    assert np.array_equal(decoded(stored, layout), packed.dequantized()[order].numpy())
    assert np.array_equal(encode(weight, KINDS[layout]), encode_packed(packed, None, layout))


@needs_llama_cpp
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layout", KINDS)
@pytest.mark.parametrize("kind", ["normal", "heavy", "uniform", "sparse", "small"])
def test_the_search_errs_less_than_llama_cpps_own(layout, kind, weighted):
    """Its `ggml_quantize_chunk`, by squared errors weighted by an importance matrix where there is one."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(32, 1024, generator=generator)
    heavy = normal / torch.randn(32, 1024, generator=generator).square().add(0.2)
    weight = {
        "normal": normal * 0.02, "heavy": heavy * 0.02, "uniform": torch.rand(32, 1024, generator=generator) - 0.3,
        "sparse": normal * (torch.rand(32, 1024, generator=generator) < 0.1), "small": normal * 1e-5,
    }[kind]  # fmt: skip
    importance = (3 * torch.rand(1024, generator=generator)).exp() if weighted else None

    def error(values: torch.Tensor) -> float:
        squares = (values - weight).double().square()
        return float((squares if importance is None else squares * importance).sum())

    theirs = rounded(weight.numpy(), layout, None if importance is None else importance.numpy())
    ours = dequantize_weight(quantize_clipped(weight, parse_scheme(layout).weight, importance), weight.shape)
    assert error(ours) < error(torch.from_numpy(theirs))
