"""Query, key and value, or gate and up, quantise their common input once; an input that changed is quantised anew."""

from __future__ import annotations

import pytest
import torch

from edgequant.quantization.arithmetic.affine import quantize, token_parameters
from edgequant.quantization.layers import quantized_input
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.layers.quantized_input import QuantizedInput, Range
from edgequant.quantization.scheme import parse_scheme


@pytest.fixture
def quantized(monkeypatch):
    """The inputs that were quantised."""
    seen = []
    monkeypatch.setattr(quantized_input, "quantize", lambda *given: seen.append(given[0]) or quantize(*given))
    monkeypatch.setattr(QuantizedInput, "_latest", None)
    return seen


def fixed(scale: float, zero_point: float) -> Range:
    return Range(torch.tensor([scale]), torch.tensor([zero_point]))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8-g32", "w8a8-static"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_decoder_layer_quantises_four_inputs_for_seven_linears(scheme, context, tiny, quantized):
    tokens = torch.arange(12)[None]
    prepare(tiny.model, parse_scheme(scheme))
    if has_static_ranges(tiny.model):
        calibrate(tiny.model, [tokens])
    convert(tiny.model)
    quantized.clear()
    with context():
        tiny.model(input_ids=tokens)
    assert len(quantized) == 4 * tiny.model.config.num_hidden_layers


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_an_input_changed_in_place_is_quantised_anew(context, quantized):
    with context():
        values = torch.randn(2, 8)
        QuantizedInput.of(values)
        values.mul_(3)
        found = QuantizedInput.of(values)
        expected = quantize(values, *token_parameters(values, (-128, 127)), (-128, 127))
    assert len(quantized) == 2 and torch.equal(found.codes, expected)


def test_other_ranges_shapes_and_types_share_nothing(quantized):
    values = torch.randn(2, 8)
    for fix in (fixed(0.1, 0), fixed(0.1, 1), fixed(0.2, 1), None):
        QuantizedInput.of(values, fix)
    assert QuantizedInput.of(values.view(4, 4)).codes.shape == (4, 4)
    assert QuantizedInput.of(values.view(4, 4).bfloat16()).real.dtype == torch.bfloat16
    assert len(quantized) == 6


def test_equal_ranges_of_two_linears_share(quantized):
    values = torch.randn(2, 8)
    assert QuantizedInput.of(values, fixed(0.1, 3)) is QuantizedInput.of(values.clone(), fixed(0.1, 3))


def test_an_input_with_gradients_is_never_shared():
    """The graph behind it is another one each time."""
    values = torch.randn(2, 8, requires_grad=True)
    assert QuantizedInput.of(values) is not QuantizedInput.of(values)


def test_integers_sums_and_real_values_are_those_of_the_codes():
    values = torch.randn(2, 3, 8)
    found = QuantizedInput(values, None)
    assert found.int8.shape == (6, 8) and torch.equal(found.int8.float().view(2, 3, 8), found.codes)
    assert torch.equal(found.row_sums[:, 0].float(), found.codes.view(6, 8).sum(1))
    assert torch.equal(found.real, (found.codes - found.zero_point) * found.scale)
