"""Layers under training: learned scales (LSQ+), phases, shared inputs, what conversion keeps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from near_ties import assert_same_linear_by_linear, linear_by_linear

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.affine import best_clipping_factor, dequantize_weight, grouped, quantize_weight
from edgequant.quantization.arithmetic.learned_steps import fake_quantize_learned
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare, set_phase
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import WeightSpec, parse_scheme


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 250, (2, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("affine", [True, False])
def test_learned_steps_have_the_gradients_of_the_function_with_its_rounding_error_held_still(bits, affine):
    """LSQ+ (arXiv 2004.09576): S (clamp(r / S + e + Z) - Z), e = round(r / S) - r / S constant; central differences."""
    generator = np.random.default_rng(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = generator.uniform(0.1, 1.0, (3, 2, 1))
    zero = generator.integers(low, high + 1, (3, 2, 1)).astype(float) if affine else np.zeros((3, 2, 1))
    real = generator.uniform(-1.5, 1.5, (3, 2, 16)) * 2**bits * scale
    pulled = generator.normal(size=real.shape)
    error = np.round(real / scale) - real / scale

    def loss(r, s, z):
        return (pulled * s * (np.clip(r / s + error + z, low, high) - z)).sum(-1, keepdims=True)

    r, s, z = (torch.tensor(x, requires_grad=True) for x in (real, scale, zero))
    simulated = fake_quantize_learned(r, s, z if affine else None, (low, high))
    (simulated * torch.from_numpy(pulled)).sum().backward()
    step = 1e-6
    for_scale = (loss(real, scale + step, zero) - loss(real, scale - step, zero)) / (2 * step)
    at_bound = np.abs(np.round(real / scale) + zero - np.clip(np.round(real / scale) + zero, low, high)) == 0
    assert at_bound.any() and not at_bound.all()  # both clipped and unclipped values take part
    # exactly on a bound the derivative has two sides: leave those groups out
    clear = ~((np.round(real / scale) + zero == low) | (np.round(real / scale) + zero == high)).any(-1, keepdims=True)
    if clear.any():
        np.testing.assert_allclose(s.grad.numpy()[clear], for_scale[clear], rtol=1e-4, atol=1e-5)
    if affine and clear.any():
        for_zero = (loss(real, scale, zero + step) - loss(real, scale, zero - step)) / (2 * step)
        np.testing.assert_allclose(z.grad.numpy()[clear], for_zero[clear], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(r.grad.numpy(), pulled * at_bound, rtol=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_by_least_error_beats_the_full_range_in_every_group(bits):
    spec = WeightSpec(bits=bits, granularity="group", group_size=32)
    weight = torch.distributions.StudentT(3.0).sample((16, 128))
    groups = grouped(weight, spec)

    def error(shrink):
        back = dequantize_weight(quantize_weight(weight, spec, shrink), weight.shape)
        return (grouped(back, spec) - groups).square().sum(-1)

    chosen, full = error(best_clipping_factor(groups, spec)), error(1.0)
    assert (chosen <= full * 1.0001).all()
    assert chosen.sum() < 0.98 * full.sum()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scheme", ["w4a8-g32+emb4", "w8a8-static+emb8", "w3-g64+emb3", "w2-g16", "q4_1+embq4_0"])
def test_after_training_the_integers_are_what_was_simulated(tiny, tokens, scheme, learned):
    model = tiny.model
    prepare(model, parse_scheme(scheme), learnable_scales=learned)
    if has_static_ranges(model):
        calibrate(model, [tokens])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    set_phase(model, quantize_inputs=True, observe=False)
    simulated = linear_by_linear(model, tokens)
    convert(model)
    assert_same_linear_by_linear(simulated, model, tokens)


def test_learned_scales_receive_gradients_in_every_layer(tiny, tokens):
    prepare(tiny.model, parse_scheme("w4-g32+emb4"), learnable_scales=True)
    tiny.model(input_ids=tokens, labels=tokens).loss.backward()
    scales = {name: p for name, p in tiny.model.named_parameters() if "scale" in name}
    assert len(scales) == 15  # 14 linears and the embedding that the head shares
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in scales.values())


def test_without_learned_scales_the_parameters_are_the_models_own(tiny):
    before = {name: id(parameter) for name, parameter in tiny.model.named_parameters()}
    prepare(tiny.model, parse_scheme("w4a8-g32+emb4"))
    assert {name: id(parameter) for name, parameter in tiny.model.named_parameters()} == before
    assert tiny.model.lm_head.weight is tiny.model.model.embed_tokens.weight


def test_delayed_inputs_pass_unquantized_until_the_phase_comes(tiny, tokens):
    weights_only = copy.deepcopy(tiny.model)
    prepare(weights_only, parse_scheme("w8"))
    for scheme in ("w8a8", "w8a8-static"):
        model = copy.deepcopy(tiny.model)
        prepare(model, parse_scheme(scheme))
        set_phase(model, quantize_inputs=False, observe=True)
        with torch.no_grad():
            delayed = model(input_ids=tokens).logits
            assert torch.equal(delayed, weights_only(input_ids=tokens).logits)
            set_phase(model, quantize_inputs=True, observe=False)
            assert not torch.equal(model(input_ids=tokens).logits, delayed)


def test_linears_that_share_an_input_see_it_quantized_as_each_would_alone(tiny, tokens):
    prepare(tiny.model, parse_scheme("w8a8"))
    seen = {}
    for name, module in tiny.model.named_modules():
        if isinstance(module, FakeQuantizedLinear) and name.endswith(("q_proj", "k_proj", "gate_proj", "up_proj")):
            module.input_quantizer.register_forward_hook(lambda m, i, o, name=name: seen.update({name: (i[0], o)}))
    for step in range(2):  # the second batch must not see the first one's
        with torch.no_grad():
            tiny.model(input_ids=tokens + step)
        for inputs, outputs in seen.values():
            low, high = inputs.amin(-1, keepdim=True).clamp(max=0), inputs.amax(-1, keepdim=True).clamp(min=0)
            scale = (high - low) / 255
            zero = torch.round(-128 - low / scale)
            expected = (torch.clamp(torch.round(inputs / scale) + zero, -128, 127) - zero) * scale
            torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)


def test_an_input_changed_in_place_is_quantized_anew(tiny):
    prepare(tiny.model, parse_scheme("w8a8"))
    quantizer = tiny.model.model.layers[0].self_attn.q_proj.input_quantizer
    values = torch.randn(4, 128)
    first = quantizer(values)
    values.mul_(10)
    torch.testing.assert_close(quantizer(values), first * 10, rtol=1e-5, atol=1e-5)


def test_simulation_runs_in_inference_mode(tiny, tokens):
    prepare(tiny.model, parse_scheme("w8a8"))
    with torch.inference_mode():
        inside = tiny.model(input_ids=tokens).logits
    with torch.no_grad():
        assert torch.equal(inside.clone(), tiny.model(input_ids=tokens).logits)


def test_static_schemes_are_not_converted_before_anything_was_observed(tiny):
    prepare(tiny.model, parse_scheme("w8a8-static"))
    with pytest.raises(UserError, match="never observed"):
        convert(tiny.model)


def test_ptq_of_a_static_scheme_asks_for_calibration_text(tiny):
    with pytest.raises(UserError, match=r"w8a8-static has static activation ranges; give calibration"):
        quantize(tiny.model, parse_scheme("w8a8-static"))


@pytest.mark.parametrize("observer", ["moving_average_minmax", "minmax", "percentile", "mse"])
def test_every_observer_gives_a_static_model_that_follows_its_floating_one(tiny, tokens, observer):
    with torch.no_grad():
        floating = tiny.model(input_ids=tokens).logits
        quantize(
            tiny.model,
            parse_scheme("w8a8-static"),
            calibration=[tokens],
            calibration_settings=CalibrationSettings(observer=observer),
        )
        assert (tiny.model(input_ids=tokens).logits - floating).std() < 0.1 * floating.std()
