"""K-quants' scales of scales: what is stored stays, odd weights come through, the search errs less than rounding."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgequant.quantization.arithmetic.affine import QuantizedWeight, dequantize_weight, grouped, quantize_weight
from edgequant.quantization.arithmetic.grids import stored, stored_minimum
from edgequant.quantization.arithmetic.range_search import quantize_clipped
from edgequant.quantization.arithmetic.super_blocks import minimum_factors, scale_factors
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.scheme import parse_scheme
from edgequant.quantization.weight_spec import WeightSpec

LAYOUTS = ["q4_k", "q6_k"]
INTEGERS = {"q4_k": (1, 63), "q6_k": (-128, 127)}  # of scales; q4_k's minima are 0 to 63
SMALLEST = 2.0**-24  # of float16's numbers above 0


def spec_of(layout: str) -> WeightSpec:
    spec = parse_scheme(layout).weight
    assert spec is not None
    return spec


def odd_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(8, 512, generator=generator) * 0.05
    outlier, sparse = normal.clone(), torch.where(torch.rand(8, 512, generator=generator) < 0.9, 0.0, normal)
    outlier[:, 7], sparse[:, :64] = 90.0, 0.0
    one, other = torch.zeros(8, 512), torch.zeros(8, 512)
    one[:, 300], other[:, 17] = 0.7, -0.7
    return {
        "normal": normal, "zeros": torch.zeros(8, 512), "an outlier": outlier, "sparse": sparse, "one": one,
        "one below 0": other, "ones": torch.ones(8, 512), "minus ones": -torch.ones(8, 512), "positive": normal.abs(),
        "negative": -normal.abs(), "small": normal * 1e-5, "denormal": normal * 1e-42, "large": normal * 1e6,
        "steps": (torch.arange(512) % 16 - 8).float().expand(8, -1).contiguous(),
    }  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=150, deadline=None)
@given(
    numbers=arrays(np.float32, (4, 16), elements=st.floats(-1.0, 1.0, width=32)),
    exponent=st.integers(-30, 12),
    steps=st.booleans(),
)
def test_storing_what_was_stored_changes_nothing(layout, numbers, exponent, steps):
    """Also where float16 has no precision left: a scale that changed by being stored would not be the trained one."""
    numbers = torch.from_numpy(numbers) * (16_000 * SMALLEST if steps else 2.0**exponent)
    numbers = (numbers / SMALLEST).round() * SMALLEST if steps else numbers
    scales = numbers.reshape(-1, 16, 1)
    found = stored(scales, spec_of(layout))
    assert torch.equal(stored(found, spec_of(layout)), found) and found.all() and found.isfinite().all()
    factors = scale_factors(found, spec_of(layout))
    assert torch.equal(factors.factor.half().float(), factors.factor) and torch.equal(factors.values(), found)
    low, high = INTEGERS[layout]
    assert torch.equal(factors.integers, factors.integers.round().clamp(low, high)) and factors.integers.all()
    if layout == "q4_k":
        minima = stored_minimum(scales, spec_of(layout))
        assert torch.equal(stored_minimum(minima, spec_of(layout)), minima) and (minima <= 0).all()
        depths = minimum_factors(minima, spec_of(layout))
        assert torch.equal(depths.integers, depths.integers.round().clamp(0, 63))
        assert torch.equal(depths.factor.half().float(), depths.factor) and torch.equal(depths.values(), minima)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_are_stored_as_near_as_their_integers_reach(layout):
    """Half an integer of the largest scale's share, or of q6_k's twice as many, and float16's rounding of the rest."""
    scales = torch.rand(64, 32, 1, generator=torch.Generator().manual_seed(0)) + 0.01
    scales = scales if layout == "q4_k" else scales * torch.randn(64, 32, 1).sign()
    error = (stored(scales, spec_of(layout)) - scales).abs().view(64, -1, 8 if layout == "q4_k" else 16)
    largest = scales.abs().view(error.shape).amax(-1, keepdim=True)
    assert (error / largest).max() <= 0.5 / INTEGERS[layout][1] * (1.05 if layout == "q4_k" else 2.1) + 2.0**-11


@pytest.mark.parametrize("round_to", [quantize_weight, quantize_clipped])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", odd_weights())
def test_odd_weights_are_rounded_to_what_is_stored_and_near_them(layout, kind, round_to):
    weight, spec = odd_weights()[kind], spec_of(layout)
    found = round_to(weight, spec)
    values = dequantize_weight(found, weight.shape)
    packed = PackedWeight.of(found, *weight.shape, spec)
    assert torch.equal(packed.dequantized(), values) and values.isfinite().all()
    assert torch.equal(packed.dequantized(rows=torch.tensor([3, 0])), values[[3, 0]])
    reach = grouped(weight, spec).abs().amax(-1, keepdim=True).expand(-1, -1, spec.group_size).reshape(weight.shape)
    of_super_block = weight.abs().view(8, -1, 256).amax(-1).repeat_interleave(256, 1)
    # A step of the group and one of what scale and minimum of the super-block are counted in; float16's own below it.
    step = {"q4_k": 2 / 15, "q6_k": 1 / 31}[layout]
    unit = {"q4_k": 2 / 63, "q6_k": 1 / 31}[layout]
    assert ((values - weight).abs() <= step * reach + unit * of_super_block + 70 * SMALLEST).all()
    if kind in ("zeros", "steps") and layout == "q4_k":
        torch.testing.assert_close(values, weight, rtol=2.0**-11, atol=8 * 2.0**-11)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", odd_weights())
def test_the_search_errs_no_more_than_rounding_to_nearest_in_any_super_block(layout, kind):
    weight, spec = odd_weights()[kind], spec_of(layout)

    def errors(found: QuantizedWeight) -> torch.Tensor:
        return (dequantize_weight(found, weight.shape) - weight).double().square().view(8, -1, 256).sum(-1)

    searched, nearest = errors(quantize_clipped(weight, spec)), errors(quantize_weight(weight, spec))
    assert (searched <= nearest * (1 + 1e-4) + 1e-12 * weight.double().square().mean()).all()
    if kind == "normal":
        assert searched.sum() < 0.9 * nearest.sum()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_matrix_takes_seconds(layout):
    weight = torch.randn(2048, 5632, generator=torch.Generator().manual_seed(0))  # a down projection of TinyLlama
    start = time.process_time()
    quantize_clipped(weight, spec_of(layout))
    assert time.process_time() - start < 15  # 1.8 s at one thread of an AMD EPYC


@pytest.mark.parametrize(("layout", "bytes_of_block"), [("q4_k", 144), ("q6_k", 210)])
def test_a_checkpoint_spends_the_bits_of_ggmls_block(layout, bytes_of_block):
    """`block_q4_K` and `block_q6_K` of ggml-common.h."""
    spec, weight = spec_of(layout), odd_weights()["normal"]
    packed = PackedWeight.of(quantize_weight(weight, spec), *weight.shape, spec)
    size = sum(buffer.numel() * buffer.element_size() for buffer in packed.state_dict().values())
    assert size == weight.numel() // 256 * bytes_of_block
    assert spec.bits_per_weight(512) == bytes_of_block * 8 / 256
