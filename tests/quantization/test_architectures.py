"""The methodology's four architectures, tied and untied, with their biases and scaled embeddings, there and back."""

from __future__ import annotations

import pytest
import torch
from near_ties import assert_same_linear_by_linear, linear_by_linear
from random_architectures import KINDS, LINEARS_PER_LAYER, make
from transformers import (
    AutoModelForCausalLM,
)

from edgequant.errors import UserError
from edgequant.quantization import checkpoint
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.layers.fake_quantized import output_scale_of
from edgequant.quantization.layers.integer import IntegerLinear
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["w8a8-static+emb8", "w4a8-g32+emb4", "w4-g32"])
def test_what_is_simulated_is_what_is_loaded_back(kind, tied, scheme, _tiny, tokens, tmp_path):
    model, parsed = make(kind, tied), parse_scheme(scheme)
    targets = prepare(model, parsed)
    assert len(targets.linears) == 2 * LINEARS_PER_LAYER[kind]
    if has_static_ranges(model):
        calibrate(model, [tokens])
    simulated = linear_by_linear(model, tokens)
    convert(model)
    assert_same_linear_by_linear(simulated, model, tokens)
    with torch.no_grad():
        integer = model(input_ids=tokens).logits
        checkpoint.save(model, _tiny.tokenizer, tmp_path / "c", parsed, parameters=1, made_from=kind)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
        assert torch.equal(loaded(input_ids=tokens).logits, integer)
    assert type(loaded) is type(model)
    assert all(isinstance(loaded.get_submodule(name), IntegerLinear) for name in targets.linears)
    if parsed.embedding is not None:
        assert (loaded.lm_head.packed is loaded.get_input_embeddings().packed_weight) == tied


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_cost_an_architecture_next_to_nothing(kind, tied, tokens):
    """A lost bias, a lost embedding scale or a swapped layer would change the logits; 8-bit weights hardly do."""
    model = make(kind, tied)
    with torch.no_grad():
        floating = model(input_ids=tokens).logits
        quantize(model, parse_scheme("w8+emb8"))
        assert (model(input_ids=tokens).logits - floating).std() < 0.03 * floating.std()


@pytest.mark.parametrize("kind", KINDS)
def test_generation_runs_on_integers(kind, tokens):
    model = make(kind, True)
    quantize(model, parse_scheme("w4a8-g32+emb4"))
    generated = model.generate(tokens[:, :8], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    with torch.no_grad():
        greedy = model(input_ids=generated[:, :-1]).logits[:, 7:].argmax(-1)
    assert generated.shape == (2, 12)
    assert (greedy == generated[:, 8:]).float().mean() >= 0.75  # cached and uncached attention round differently


def test_gemmas_embedding_scale_is_applied_after_quantization():
    model = make("gemma3", True)
    ids = torch.tensor([[5, 9]])
    expected = model.get_input_embeddings()(ids)
    assert output_scale_of(model.get_input_embeddings()) == pytest.approx(64**0.5)
    quantize(model, parse_scheme("w8+emb8"))
    found = model.get_input_embeddings()(ids)
    assert (found - expected).abs().max() <= 0.51 * expected.abs().max() * 2 / 255


def test_an_embedding_that_does_more_than_scale_is_refused():
    class Shifted(torch.nn.Embedding):
        def forward(self, input):
            return super().forward(input) + 1

    with pytest.raises(UserError, match="Shifted does more than look up and scale"):
        output_scale_of(Shifted(8, 4))


def test_a_model_without_linears_is_refused_by_name():
    with pytest.raises(UserError, match=r"layers of nn\.Linear, which scheme w8 quantises, got Sequential"):
        prepare(torch.nn.Sequential(torch.nn.ReLU()), parse_scheme("w8"))


def test_bitsandbytes_schemes_cannot_be_prepared(tiny):
    with pytest.raises(UserError, match=r"bnb-nf4 is bitsandbytes' own"):
        prepare(tiny.model, parse_scheme("bnb-nf4"))


def test_a_group_that_does_not_fit_names_the_layer_of_the_model():
    with pytest.raises(UserError, match=r"group_size 48 .*64 input features of model\.layers\.0\.self_attn\.q_proj"):
        prepare(make("llama", True), parse_scheme("w4-g48"))
