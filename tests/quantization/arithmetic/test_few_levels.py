"""Two symmetric bits and ternary weights: against levels and codes written out by hand, and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgequant.quantization.arithmetic.affine import (
    best_clipping_factor,
    dequantize_weight,
    grouped,
    nearest_codes,
    quantize_weight,
    weight_parameters,
)
from edgequant.quantization.arithmetic.packing import pack_ternary, packed_ternary_length, unpack_ternary
from edgequant.quantization.arithmetic.range_search import quantize_clipped
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.scheme import parse_scheme

LEVELS = {"w2-g32-sym": np.array([-1.5, -0.5, 0.5, 1.5]), "w1.58-g32": np.array([-1.0, 0.0, 1.0])}
BOTH = pytest.mark.parametrize("scheme", LEVELS)


def spec_of(scheme: str):
    return parse_scheme(scheme).weight


def normal(rows: int = 16, features: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, features, generator=generator) * torch.rand(rows, 1, generator=generator)


def nearest(row: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return levels[np.abs(row[:, None] - levels).argmin(1)]


@pytest.mark.parametrize(
    ("scheme", "codes"), [("w2-g32-sym", [-2, -2, -1, -1, 0, 0, 1, 1]), ("w1.58-g32", [-1, -1, -1, 0, 0, 1, 1, 1])]
)
def test_codes_are_those_of_the_nearest_level(scheme, codes):
    """Scale 2: levels -3, -1, 1, 3 with borders at -2, 0, 2, and levels -2, 0, 2 with borders at -1, 1."""
    weight = torch.tensor([[[-9.0, -2.2, -1.8, -0.1, 0.1, 1.8, 2.2, 9.0]]])
    zero_point = torch.full((1, 1, 1), -0.5) if "sym" in scheme else None
    assert nearest_codes(weight, torch.full((1, 1, 1), 2.0), zero_point, spec_of(scheme)).flatten().tolist() == codes


@BOTH
def test_every_weight_becomes_the_nearest_of_its_levels(scheme):
    weight = normal()
    quantized = quantize_weight(weight, spec_of(scheme))
    back = dequantize_weight(quantized, weight.shape).reshape(-1, 32).numpy()
    for row, values, scale in zip(
        weight.reshape(-1, 32).numpy(), back, quantized.scale.flatten().tolist(), strict=True
    ):
        np.testing.assert_allclose(values, nearest(row, scale * LEVELS[scheme]), rtol=1e-6)


@BOTH
def test_the_scale_without_a_search_is_the_best_for_a_normal_distribution(scheme):
    """Brute force over scales of a million normal numbers, whose grid Max's table gives to four digits."""
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    sample, levels = values.numpy(), LEVELS[scheme]

    def error(scale: float) -> float:
        edges = scale * (levels[1:] + levels[:-1]) / 2
        return float(((scale * levels[np.searchsorted(edges, sample)] - sample) ** 2).mean())

    scales = np.linspace(0.8, 1.4, 61)
    best = scales[np.argmin([error(scale) for scale in scales])]
    groups = values.reshape(1, 1, -1)
    assert float(weight_parameters(groups, spec_of(scheme))[0]) == pytest.approx(best, abs=0.02)


@BOTH
def test_a_searched_group_errs_hardly_more_than_the_best_of_all_scales(scheme):
    for row in normal(8, 32):
        real = row.numpy().astype(np.float64)
        scales = np.linspace(0.05, 1.5, 3000) * np.abs(real).max()
        least = min(float(((nearest(real, scale * LEVELS[scheme]) - real) ** 2).sum()) for scale in scales)
        found = dequantize_weight(quantize_clipped(row[None], spec_of(scheme)), (1, 32))
        assert float((found - row).square().sum()) <= 1.03 * least


@BOTH
def test_trained_scales_start_where_the_error_is_least(scheme):
    spec, groups = spec_of(scheme), grouped(normal(), spec_of(scheme))

    def errors(factor) -> torch.Tensor:
        scale, zero_point = weight_parameters(groups, spec, factor)
        codes = nearest_codes(groups, scale, zero_point, spec)
        return ((codes - (0.0 if zero_point is None else zero_point)) * scale - groups).square().sum(-1, keepdim=True)

    chosen = errors(best_clipping_factor(groups, spec))
    assert all((chosen <= errors(factor) * 1.001).all() for factor in (0.5, 1.6))
    assert float(chosen.sum()) < float(errors(1.0).sum())


@BOTH
@pytest.mark.parametrize("factor", [0.3, 1.7])
def test_a_trained_scale_gets_the_gradient_of_learned_step_sizes(scheme, factor):
    """LSQ (Esser et al. 2020, equation 3): level - w / S inside the range, the outermost level beyond it."""
    weight = (normal(4, 32) * factor).requires_grad_()
    quantizer = WeightQuantizer(spec_of(scheme), weight, learned=True)
    scale = torch.tensor(0.5)
    quantizer.initial_scale.fill_(0.5)
    pulled = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    (quantizer(weight) * pulled).sum().backward()
    levels = LEVELS[scheme]
    steps = (weight.detach() / scale).numpy()
    inside = np.abs(steps) <= levels[-1] + 0.5
    level = np.stack([nearest(row, levels) for row in steps])
    expected = (pulled.numpy() * np.where(inside, level - steps, level)).sum(1) * 0.5  # times the start: it is relative
    assert quantizer.zero_point is None
    np.testing.assert_allclose(quantizer.relative_scale.grad.flatten(), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(weight.grad, pulled.numpy() * inside, rtol=1e-6)


@BOTH
def test_a_group_of_zeros_becomes_as_good_as_zero(scheme):
    for found in (quantize_weight, quantize_clipped):
        back = dequantize_weight(found(torch.zeros(4, 64), spec_of(scheme)), (4, 64))
        assert torch.isfinite(back).all() and back.abs().max() < 1e-6


@BOTH
def test_what_lies_in_a_checkpoint_is_what_was_chosen(scheme):
    weight = normal(6, 96)
    quantized = quantize_clipped(weight, spec_of(scheme))
    packed = PackedWeight.of(quantized, 6, 96, spec_of(scheme))
    assert torch.equal(packed.dequantized(), dequantize_weight(quantized, weight.shape))
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(packed.dequantized(rows=rows), dequantize_weight(quantized, weight.shape)[rows])
    assert set(packed.state_dict()) == {"codes", "scale"}
    assert packed.codes.shape == (6, 24 if "sym" in scheme else 20)  # four codes in a byte; five


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_ternary_code_survives_packing_at_every_length(rows, count, seed):
    codes = torch.from_numpy(np.random.default_rng(seed).integers(-1, 2, (rows, count)).astype(np.int8))
    packed = pack_ternary(codes)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, packed_ternary_length(count))
    assert torch.equal(unpack_ternary(packed, count), codes)


def test_five_ternary_codes_are_a_number_of_base_three():
    assert pack_ternary(torch.tensor([[1, 0, -1, 1, -1, 1]], dtype=torch.int8)).tolist() == [
        [2 + 1 * 3 + 0 * 9 + 2 * 27 + 0 * 81, 2]
    ]
