"""Properties of Jacob et al. 2017, equation 1, r = S (q - Z), and of the gradients through simulated quantisation."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgequant.quantization.arithmetic.affine import (
    affine_parameters,
    dequantize,
    dequantize_weight,
    fake_quantize,
    fake_quantize_tokens,
    fake_quantize_weight,
    quantize,
    quantize_weight,
    stored_scale,
)
from edgequant.quantization.scheme import WeightSpec

BITS = st.integers(2, 8)
REALS = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)
VALUES = arrays.arrays(np.float32, st.integers(1, 24), elements=REALS)
EXACT = settings(deadline=None, max_examples=150, derandomize=True)


def integer_range(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def parameters_of(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    return affine_parameters(values.min(), values.max(), integer_range(bits))


@EXACT
@given(VALUES, BITS)
def test_real_zero_is_an_integer_and_comes_back_as_exactly_zero(values, bits):
    scale, zero_point = parameters_of(torch.from_numpy(values), bits)
    lowest, highest = integer_range(bits)
    code = quantize(torch.zeros(()), scale, zero_point, (lowest, highest))
    assert float(zero_point).is_integer() and lowest <= zero_point <= highest
    assert code == zero_point
    assert dequantize(code, scale, zero_point) == 0.0


@EXACT
@given(VALUES, BITS)
def test_values_in_the_range_come_back_within_half_a_step(values, bits):
    real = torch.from_numpy(values)
    scale, zero_point = parameters_of(real, bits)
    back = dequantize(quantize(real, scale, zero_point, integer_range(bits)), scale, zero_point)
    rounding = 4 * np.finfo(np.float32).eps * 2**bits  # of r / S and of S (q - Z), in steps
    assert ((back - real).abs() <= scale * (0.5 + rounding)).all()


@EXACT
@given(VALUES, BITS)
def test_codes_are_monotone_in_the_real_value_and_use_the_range_to_its_ends(values, bits):
    real = torch.from_numpy(np.sort(values))
    scale, zero_point = parameters_of(real, bits)
    codes = quantize(real, scale, zero_point, integer_range(bits))
    assert (codes.diff() >= 0).all()
    lowest, highest = integer_range(bits)
    if real.min() < 0 < real.max():
        assert codes[0] <= lowest + 1 and codes[-1] >= highest - 1


@EXACT
@given(VALUES, BITS, st.floats(1.0, 10.0), st.floats(1.0, 10.0))
def test_a_wider_real_range_never_has_a_finer_scale(values, bits, lower, higher):
    low, high = torch.tensor(values.min()).clamp(max=0), torch.tensor(values.max()).clamp(min=0)
    narrow, _ = affine_parameters(low, high, integer_range(bits))
    wide, _ = affine_parameters(low * lower, high * higher, integer_range(bits))
    assert wide >= narrow or low == high == 0  # an empty range has the scale 1 by agreement


@EXACT
@given(VALUES, BITS)
def test_fake_quantization_shows_what_the_integers_stand_for(values, bits):
    real = torch.from_numpy(values)
    scale, zero_point = parameters_of(real / 2, bits)  # so that some values are clipped
    integers = dequantize(quantize(real, scale, zero_point, integer_range(bits)), scale, zero_point)
    assert torch.equal(fake_quantize(real, scale, zero_point, integer_range(bits)), integers)


@EXACT
@given(st.integers(0, 10_000), BITS)
def test_straight_through_gradient_is_that_of_the_function_without_rounding(seed, bits):
    """Smoothed: round is left out, S (clamp(r / S + Z) - Z); its derivative by central differences."""
    generator = np.random.default_rng(seed)
    lowest, highest = integer_range(bits)
    scale, zero_point = generator.uniform(0.01, 2.0), float(generator.integers(lowest, highest + 1))
    steps = generator.uniform(-3 * 2**bits, 3 * 2**bits, 64)
    steps = steps[np.minimum(np.abs(steps + zero_point - lowest), np.abs(steps + zero_point - highest)) > 0.51]
    real, weights = steps * scale, generator.normal(size=steps.shape)

    def smoothed(values):
        return scale * (np.clip(values / scale + zero_point, lowest, highest) - zero_point)

    expected = weights * (smoothed(real + 1e-4 * scale) - smoothed(real - 1e-4 * scale)) / (2e-4 * scale)
    given_values = torch.tensor(real, requires_grad=True)
    simulated = fake_quantize(given_values, torch.tensor(scale), torch.tensor(zero_point), (lowest, highest))
    (simulated * torch.from_numpy(weights)).sum().backward()
    np.testing.assert_allclose(given_values.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("zero_point", "bits"), [("integer", 2), *product(("none", "integer"), range(3, 9))])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
def test_weights_come_back_within_half_a_step_of_their_own_group(bits, granularity, zero_point, scale_dtype):
    group_size = 16 if granularity == "group" else None
    spec = WeightSpec(
        bits=bits, granularity=granularity, group_size=group_size, zero_point=zero_point, scale_dtype=scale_dtype
    )
    weight = torch.randn(8, 48, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-1, 2, 8)[:, None]
    quantized = quantize_weight(weight, spec)
    back = dequantize_weight(quantized, weight.shape)
    size = {"tensor": weight.numel(), "channel": 48, "group": 16}[granularity]
    blocks, lowest = weight.reshape(-1, size).numpy(), -(2 ** (bits - 1))
    if zero_point == "none":
        reach = lowest + 1 if bits == 8 else lowest
        step = np.maximum(blocks.min(1) / reach, blocks.max(1) / (-lowest - 1))
    else:
        step = (np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)) / (2**bits - 1)
    error = np.abs(back.numpy().reshape(-1, size) - blocks).max(1)
    lost = 2**bits * (2.0**-11 if scale_dtype == "float16" else 2.0**-22)  # a scale rounded down clips the extremes
    assert (error <= step * (0.5 + lost)).all()
    assert quantized.codes.min() >= (reach if zero_point == "none" else lowest)
    assert quantized.codes.max() <= -lowest - 1


@pytest.mark.parametrize("fill", [0.0, 3.5, -2.25, 1e-12])
def test_a_constant_group_keeps_its_value_and_an_empty_one_stays_zero(fill):
    spec = WeightSpec(bits=4, granularity="group", group_size=8)
    back = dequantize_weight(quantize_weight(torch.full((2, 16), fill), spec), (2, 16))
    assert torch.isfinite(back).all()
    torch.testing.assert_close(back, torch.full((2, 16), fill), rtol=2**-11, atol=1e-6)


def test_weight_gradients_pass_unchanged():
    weight = torch.randn(4, 32, requires_grad=True)
    pulled = torch.randn(4, 32)
    (fake_quantize_weight(weight, WeightSpec(bits=4, granularity="group", group_size=16)) * pulled).sum().backward()
    assert torch.equal(weight.grad, pulled)


def test_each_token_has_a_range_of_its_own():
    tokens = torch.randn(3, 5, 16) * torch.tensor([0.01, 1.0, 1000.0])[:, None, None]
    simulated = fake_quantize_tokens(tokens, (-128, 127)).numpy()
    values = tokens.numpy()
    step = (np.maximum(values.max(-1), 0) - np.minimum(values.min(-1), 0)) / 255
    assert (np.abs(simulated - values).max(-1) <= step * 0.5001).all()


@EXACT
@given(st.floats(2.0**-30, 2.0**-10, width=32))
def test_a_scale_too_small_for_float16_to_resolve_is_stored_rounded_up(value):
    spec = WeightSpec(bits=8, granularity="group", group_size=32, scale_dtype="float16")
    stored = stored_scale(torch.tensor(value), spec)
    assert stored > 0 and stored.half().float() == stored  # representable
    if value < 2.0**-14:
        assert value <= stored <= value + 2.0**-24


def test_small_weights_keep_their_precision_in_groups_of_8_bits():
    spec = WeightSpec(bits=8, granularity="group", group_size=32, scale_dtype="float16")
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * 1e-3
    error = dequantize_weight(quantize_weight(weight, spec), weight.shape) - weight
    assert error.norm() / weight.norm() < 0.006  # 255 steps over about 4 standard deviations
