"""Static activation ranges that QAT trains: gradients, what is shared, phases, what is deployed, what it wins."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.learned_steps import fake_quantize_learned_range
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.convert import calibrate, convert, lacks_ranges, learn_ranges, prepare, set_phase
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears
from edgequant.quantization.layers.input_quantizers import INT8
from edgequant.quantization.layers.integer import IntegerLinear
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.distillation import divergence

STATIC = parse_scheme("w8a8-static")


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 250, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def learning(tiny, tokens):
    prepare(tiny.model, STATIC, learnable_scales=True)
    calibrate(tiny.model, [tokens])
    learn_ranges(tiny.model)
    return tiny.model


def ranges(model) -> dict[str, torch.nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if "learned_range" in name}


@pytest.mark.parametrize("zero", [-128.0, -3.0, 0.0, 90.0])
def test_gradients_are_those_of_the_function_with_its_rounding_error_held_still(zero):
    """Central differences of S (clamp(r / S + e + Z) - Z), over the square root of values times levels."""
    generator = torch.Generator().manual_seed(int(zero) + 200)
    real = (torch.randn(6, 40, generator=generator, dtype=torch.float64) * 60).requires_grad_()
    pulled = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    point = torch.tensor(zero, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        steps = real / scale
        error = torch.round(steps) - steps
        codes = torch.round(steps) + zero
        pulled[(codes == INT8[0]) | (codes == INT8[1])] = 0  # exactly on a bound the derivative has two sides
        assert bool((codes > INT8[1]).any() | (codes < INT8[0]).any())

    def loss(s: float, z: float) -> float:
        return float((pulled * s * ((real.detach() / s + error + z).clamp(*INT8) - z)).sum())

    (fake_quantize_learned_range(real, scale, point, INT8) * pulled).sum().backward()
    share, step = (real.numel() * 255) ** -0.5, 1e-6
    of_scale = (loss(0.7 + step, zero) - loss(0.7 - step, zero)) / (2 * step)
    of_point = (loss(0.7, zero + step) - loss(0.7, zero - step)) / (2 * step)
    assert scale.grad is not None and point.grad is not None
    assert float(scale.grad) == pytest.approx(of_scale * share, rel=1e-3)
    assert float(point.grad) == pytest.approx(of_point * share, rel=1e-3, abs=1e-6)


def test_linears_of_one_input_share_a_range_and_others_have_their_own(learning):
    layers = learning.model.layers[0]
    shared = [
        layer.input_quantizer.parameters_of_range() for layer in (layers.self_attn.q_proj, layers.self_attn.k_proj)
    ]
    assert ranges(layers.self_attn).keys() == {
        f"{name}_proj.input_quantizer.learned_range.{of}" for name in "qo" for of in ("relative_scale", "zero_point")
    }
    with torch.no_grad():
        layers.self_attn.q_proj.input_quantizer.learned_range.relative_scale.mul_(2)
    after = layers.self_attn.k_proj.input_quantizer.parameters_of_range()
    assert after[0].item() == pytest.approx(2 * shared[1][0].item()) and torch.equal(shared[0][0], shared[1][0])


def test_ranges_learn_only_while_inputs_are_quantized_and_follow_no_data(learning, tokens):
    before = {name: parameter.detach().clone() for name, parameter in ranges(learning).items()}
    set_phase(learning, quantize_inputs=False, observe=True)
    learning(input_ids=tokens).logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in ranges(learning).values())
    set_phase(learning, quantize_inputs=True, observe=True)
    learning(input_ids=tokens.flip(1)).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in ranges(learning).values())
    assert all(torch.equal(before[name], parameter) for name, parameter in ranges(learning).items())


def test_a_copy_trains_its_ranges_at_the_rates_of_scales(learning):
    for parameter in ranges(copy.deepcopy(learning)).values():
        assert parameter.is_scale and parameter.learning_rate_factor >= 10


def test_what_was_learned_is_what_is_deployed(learning, tokens):
    with torch.no_grad():
        for name, parameter in ranges(learning).items():
            parameter.add_(1.7 if name.endswith("zero_point") else 0.1)
    set_phase(learning, quantize_inputs=True, observe=False)
    simulated = learning(input_ids=tokens).logits
    expected = {
        name: one.input_quantizer.parameters_of_range() for name, one in fake_quantized_linears(learning).items()
    }
    convert(learning, tokens[:1])
    for name, (scale, zero_point) in expected.items():
        integer = learning.get_submodule(name)
        assert isinstance(integer, IntegerLinear)
        assert torch.equal(integer.input_scale, scale.reshape(1)) and int(integer.input_zero_point) == int(zero_point)
    torch.testing.assert_close(learning(input_ids=tokens).logits, simulated, atol=2e-2, rtol=0)


def test_learning_ranges_brings_a_model_nearer_to_its_floating_one_than_the_extremes_of_its_inputs(tiny, tokens):
    floating = copy.deepcopy(tiny.model)
    with torch.no_grad():  # an outlier rules the range of what it is added to
        for layer in floating.model.layers:
            layer.post_attention_layernorm.weight[3] *= 60
    model = copy.deepcopy(floating)
    prepare(model, STATIC, learnable_scales=True)
    assert lacks_ranges(model)
    calibrate(model, [tokens])
    assert not lacks_ranges(model)
    learn_ranges(model)
    target = floating(input_ids=tokens).logits.flatten(0, 1).detach()

    def distance() -> torch.Tensor:
        return divergence(model(input_ids=tokens).logits.flatten(0, 1), target, 1.0)

    before = distance().item()
    model.requires_grad_(False)
    learned = list(ranges(model).values())
    scales = [one for one in learned if one.requires_grad_().ndim == 0]
    optimizer = torch.optim.Adam([{"params": [one], "lr": 3e-3 * one.learning_rate_factor} for one in scales])
    for _ in range(40):
        optimizer.zero_grad()
        distance().backward()
        optimizer.step()
    assert distance().item() < 0.85 * before


def test_ranges_that_nothing_was_seen_of_cannot_be_learned(tiny):
    prepare(tiny.model, STATIC, learnable_scales=True)
    with pytest.raises(UserError, match="never observed"):
        learn_ranges(tiny.model)


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_every_observer_gives_a_start_to_learn_from(tiny, tokens, observer):
    prepare(tiny.model, STATIC, observer=CalibrationSettings(observer=observer).observer, learnable_scales=True)
    calibrate(tiny.model, [tokens])
    layers = fake_quantized_linears(tiny.model)
    before = {name: layer.input_quantizer.parameters_of_range() for name, layer in layers.items()}
    learn_ranges(tiny.model)
    after = {name: layer.input_quantizer.parameters_of_range() for name, layer in layers.items()}
    for name, (scale, zero_point) in before.items():
        assert torch.equal(scale, after[name][0]) and torch.equal(zero_point, after[name][1])
