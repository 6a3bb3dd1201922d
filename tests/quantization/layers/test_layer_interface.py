"""What both quantised layers offer, so that nobody outside their files has to ask which one it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgequant.quantization.layers.convert import convert, has_static_ranges, prepare
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers, fake_quantized_linears
from edgequant.quantization.layers.fixed_weights import IdentityQuantizer, fix_codes, fixed_codes_of
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.scheme import parse_scheme

EMBEDDING, HEAD, LINEAR = "model.embed_tokens", "lm_head", "model.layers.0.mlp.down_proj"


@pytest.fixture
def prepared(tiny):
    prepare(tiny.model, parse_scheme("w4a8-g32+emb8"))
    return tiny.model


@pytest.fixture
def converted(prepared):
    convert(prepared)
    return prepared


def test_the_finders_give_every_layer_once_in_the_models_order(prepared):
    layers = fake_quantized_layers(prepared)
    names = [name for name, _ in prepared.named_modules() if name in layers]
    assert list(layers) == names
    assert (names[0], names[-1], len(names)) == (EMBEDDING, HEAD, 16)
    assert list(fake_quantized_linears(prepared)) == names[1:]
    convert(prepared)
    assert fake_quantized_layers(prepared) == {}
    assert list(integer_layers(prepared)) == names


@pytest.mark.parametrize(
    ("name", "kind", "tied", "bits"),
    [(EMBEDDING, "embedding", False, 8), (HEAD, "linear", True, 8), (LINEAR, "linear", False, 4)],
)
def test_a_layer_says_what_it_is_before_and_after_conversion(prepared, name, kind, tied, bits):
    before = fake_quantized_layers(prepared)[name]
    assert (before.kind, before.is_tied, before.spec.bits) == (kind, tied, bits)
    assert before.real_weight is before.weight or torch.equal(before.real_weight, before.weight)
    simulated = before.quantizer(before.real_weight).detach()
    convert(prepared)
    after = integer_layers(prepared)[name]
    assert (after.kind, after.is_tied, after.packed.spec.bits) == (kind, tied, bits)
    torch.testing.assert_close(after.dequantized_weight(), simulated)


def test_a_tied_head_has_the_embeddings_quantizer_and_integers(prepared):
    layers = fake_quantized_layers(prepared)
    assert layers[HEAD].quantizer is layers[EMBEDDING].quantizer
    convert(prepared)
    integers = integer_layers(prepared)
    assert integers[HEAD].packed is integers[EMBEDDING].packed


def test_a_quantizer_given_to_a_tied_head_stays_out_of_its_modules_and_parameters(prepared):
    layers = fake_quantized_layers(prepared)
    head, own = layers[HEAD], layers[EMBEDDING].quantizer
    names = set(prepared.state_dict())
    given = IdentityQuantizer(head.spec)
    given.extra = nn.Parameter(torch.zeros(1))
    head.quantizer = given
    assert head.quantizer is given and head.is_tied
    assert layers[EMBEDDING].quantizer is own
    assert given not in list(prepared.modules())
    assert set(prepared.state_dict()) == names


@pytest.mark.parametrize("name", [EMBEDDING, LINEAR])
def test_a_quantizer_given_to_any_other_layer_takes_the_old_ones_place(prepared, name):
    layer = fake_quantized_layers(prepared)[name]
    old, given = layer.quantizer, IdentityQuantizer(layer.spec)
    layer.quantizer = given
    assert layer.quantizer is given and not layer.is_tied
    assert given in list(layer.modules()) and old not in list(layer.modules())
    assert torch.equal(layer.quantizer(layer.weight), layer.weight)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD, LINEAR])
def test_chosen_integers_are_what_the_layer_simulates(prepared, name):
    layer = fake_quantized_layers(prepared)[name]
    assert fixed_codes_of(layer) is None
    chosen = layer.quantizer.quantized(layer.weight)
    fix_codes(layer, chosen)
    assert fixed_codes_of(layer) is chosen


@pytest.mark.parametrize(("scheme", "mode", "needed"), [
    ("w8", None, False), ("w8a8", "dynamic", False), ("w8a8-static", "static", True),
])  # fmt: skip
def test_a_layer_knows_where_its_inputs_range_comes_from(tiny, scheme, mode, needed):
    prepare(tiny.model, parse_scheme(scheme))
    layer = fake_quantized_layers(tiny.model)[LINEAR]
    assert getattr(layer.input_quantizer, "mode", None) == mode
    assert layer.needs_range == has_static_ranges(tiny.model) == needed


def test_integers_know_how_inputs_are_quantized(converted):
    layers = integer_layers(converted)
    assert layers[LINEAR].activation.mode == "dynamic"
    assert layers[EMBEDDING].activation is None
