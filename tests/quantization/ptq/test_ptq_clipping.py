"""Least-squares grids against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgequant.quantization.arithmetic.affine import dequantize_weight, quantize_weight
from edgequant.quantization.arithmetic.range_search import quantize_clipped
from edgequant.quantization.scheme import parse_scheme

LAYOUTS = ["w4-g32", "w3-g64", "w2-g32", "w8", "w4", "q4_0", "q4_1", "q8_0"]


def weight(rows: int = 16, features: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, features, generator=generator) * torch.rand(rows, 1, generator=generator)


def squared_error(values, quantized, importance=None) -> float:
    squares = (dequantize_weight(quantized, values.shape) - values).square()
    return float((squares if importance is None else squares * importance).sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clipping_errs_less_than_round_to_nearest(layout):
    spec = parse_scheme(layout).weight
    values = weight()
    assert squared_error(values, quantize_clipped(values, spec)) < squared_error(values, quantize_weight(values, spec))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_stay_in_range_and_scales_in_their_storage_type(layout):
    spec = parse_scheme(layout).weight
    found = quantize_clipped(weight(), spec)
    assert int(found.codes.min()) >= spec.integer_range[0]
    assert int(found.codes.max()) <= spec.integer_range[1]
    if spec.scale_dtype == "float16":
        assert torch.equal(found.scale.half().float(), found.scale)


def test_a_group_errs_hardly_more_than_the_best_of_all_scales_and_zero_points():
    """Brute force over 400 scales and all 8 zero points of a 3-bit group."""
    spec = parse_scheme("w3-g32").weight
    values = weight(4, 32)
    for row in values:
        found = squared_error(row[None], quantize_clipped(row[None], spec))
        assert found <= 1.06 * brute_force(row.numpy().astype(np.float64))


def brute_force(row: np.ndarray) -> float:
    scales = np.linspace(0.2, 1.2, 400)[:, None, None] * (row.max() - row.min()) / 7
    zeros = np.arange(-4, 4)[None, :, None]
    codes = np.clip(np.round(row / scales) + zeros, -4, 3)
    return float((((codes - zeros) * scales - row) ** 2).sum(-1).min())


def test_important_inputs_err_less_at_the_cost_of_the_others():
    spec, values = parse_scheme("w3-g64").weight, weight()
    importance = torch.ones(128)
    importance[::16] = 100.0
    plain, weighted = quantize_clipped(values, spec), quantize_clipped(values, spec, importance)
    assert squared_error(values, weighted, importance) < squared_error(values, plain, importance)
    assert squared_error(values, weighted) > squared_error(values, plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_become_zeros(layout):
    spec = parse_scheme(layout).weight
    assert not dequantize_weight(quantize_clipped(torch.zeros(4, 128), spec), (4, 128)).any()
