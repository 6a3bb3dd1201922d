"""q4_0, q4_1 and q8_0 as schemes: any float16 scale is valid, so that PTQ chooses scales and QAT learns them."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.quantization.arithmetic.affine import dequantize_weight, grouped
from edgequant.quantization.layers.convert import convert, prepare
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.ptq.quantize import choose_integers, quantize
from edgequant.quantization.qat.ptq_initialization import learn_from_integers
from edgequant.quantization.scheme import parse_scheme

SCHEMES = ["q4_0+embq4_0", "q4_1+embq4_1", "q8_0+embq8_0", "q4_0+embq8_0"]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 250, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["mse_clip", "gptq"])
@pytest.mark.parametrize("scheme", ["q4_0+embq4_0", "q4_1+embq4_1"])
def test_ptq_errs_less_than_llama_cpps_own_rounding(tiny, tokens, scheme, method):
    """`rtn` is that rounding, bit for bit; the blocks' outputs err less by the methods, and the embedding does."""

    def errors(how: str) -> dict[str, dict[str, float]]:
        found = quantize(copy.deepcopy(tiny.model), parse_scheme(scheme), calibration=[tokens], method=how)
        return {row["layer"]: row for row in found}

    ours, reference = errors(method), errors("rtn")
    assert ours["model.embed_tokens"]["weight_error"] < 0.95 * reference["model.embed_tokens"]["weight_error"]
    with torch.no_grad():
        expected = tiny.model(input_ids=tokens).logits
        distances = []
        for how in (method, "rtn"):
            model = copy.deepcopy(tiny.model)
            quantize(model, parse_scheme(scheme), calibration=[tokens], method=how)
            distances.append(float((model(input_ids=tokens).logits - expected).square().mean()))
    assert distances[0] < 0.95 * distances[1]


@pytest.mark.parametrize("method", ["mse_clip", "gptq"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_qat_starts_from_exactly_what_ptq_chose(tiny, tokens, scheme, method):
    """Negative scales of q4_0 and minima of q4_1 among it."""
    choose_integers(tiny.model, parse_scheme(scheme), [tokens], method)
    chosen = {
        name: layer.quantizer.quantized(layer.weight) for name, layer in fake_quantized_layers(tiny.model).items()
    }
    learn_from_integers(tiny.model)
    for name, layer in fake_quantized_layers(tiny.model).items():
        found = layer.quantizer.quantized(layer.weight)
        for part, start in zip(found, chosen[name], strict=True):
            assert (part is None and start is None) or torch.equal(part, start), name
    if scheme.startswith("q4_0"):
        assert {bool(sign) for one in chosen.values() for sign in (one.scale < 0).unique()} == {True, False}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_and_minima_learn_and_are_deployed_as_they_were_simulated(tiny, tokens, scheme):
    prepare(tiny.model, parse_scheme(scheme), learnable_scales=True)
    optimizer = torch.optim.SGD(tiny.model.parameters(), lr=0.05)
    before = {name: one.clone() for name, one in tiny.model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        tiny.model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    moved = {
        name.rpartition(".")[2] for name, one in tiny.model.named_parameters() if not torch.equal(one, before[name])
    }
    assert moved >= {"relative_scale"} | ({"minimum_shift"} if "q4_1" in scheme else set())
    layers = fake_quantized_layers(tiny.model)
    simulated = {name: layer.quantizer(layer.weight).detach().clone() for name, layer in layers.items()}
    with torch.no_grad():
        logits = tiny.model(input_ids=tokens).logits
        convert(tiny.model)
        torch.testing.assert_close(tiny.model(input_ids=tokens).logits, logits)  # a product's last bit may differ
    for name, layer in integer_layers(tiny.model).items():
        assert torch.equal(layer.dequantized_weight(), simulated[name]), name
        assert layer.packed.scale.dtype == torch.float16 and torch.isfinite(layer.packed.scale).all()


def test_a_minimum_and_a_negative_scale_have_the_gradients_of_the_formula(tiny):
    """value = S code + offset, codes held still where nothing is clipped; q4_0 has scales of both signs."""
    generator = torch.Generator().manual_seed(1)
    weight, pulled = (torch.randn(8, 64, generator=generator) for _ in range(2))
    for name in ("q4_0", "q4_1"):
        quantizer = WeightQuantizer(parse_scheme(name).weight, weight, learned=True)
        quantizer(weight).backward(pulled)
        found = quantizer.quantized(weight)
        groups, gradient = grouped(weight, quantizer.spec), grouped(pulled, quantizer.spec)
        lowest = 0 if found.minimum is None else -8
        offset = 0 if found.minimum is None else found.minimum
        position = (groups - offset) / found.scale + lowest
        inside = (position.round() >= -8) & (position.round() <= 7)
        for_scale = torch.where(inside, found.codes - position, found.codes.float() - lowest) * gradient
        expected = for_scale.sum(-1, keepdim=True) * quantizer.initial_scale
        torch.testing.assert_close(quantizer.relative_scale.grad, expected, rtol=1e-4, atol=1e-5)
        if found.minimum is not None:
            expected = (gradient * ~inside).sum(-1, keepdim=True) * quantizer.initial_scale
            torch.testing.assert_close(quantizer.minimum_shift.grad, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(quantizer(weight), dequantize_weight(found, weight.shape))
