"""`auto`: what it looks at, what judges it, and rounding to nearest where that predicts unseen text better."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.quantization.arithmetic.affine import quantize_weight
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
from edgequant.quantization.layers.fixed_weights import fix_codes, fixed_codes_of
from edgequant.quantization.ptq import automatic, methods
from edgequant.quantization.ptq.automatic import choose_automatically
from edgequant.quantization.ptq.methods import PtqMethod
from edgequant.quantization.ptq.quantize import choose_integers
from edgequant.quantization.ptq.rounding import Rounding
from edgequant.quantization.scheme import parse_scheme

SETTINGS = CalibrationSettings(batch_size=2, precision="float32")
Q4_0 = parse_scheme("q4_0+embq4_0")


class AllZero(Rounding):
    """Destroys a model."""

    uses_inputs = True

    def quantized(self, weight, spec):
        found = quantize_weight(weight, spec)
        return found._replace(codes=torch.zeros_like(found.codes))


class LoudNorms:
    """A step that learns nothing good."""

    def apply(self, block):
        for name, parameter in block.module.named_parameters():
            if "norm" in name:
                parameter.mul_(30)


BAD = (
    PtqMethod(name="all_zero", stage="round", description="-", make=lambda _s: AllZero(), needs_calibration=True),
    PtqMethod(name="loud", stage="learn", description="-", make=lambda _s: LoudNorms(), needs_calibration=True),
)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (9, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def best(monkeypatch):
    """Lets a test say what the best method is."""
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, *BAD))
    return lambda name: monkeypatch.setattr(automatic, "best_method", lambda *_args, **_kwargs: name)


def chosen(tiny, tokens, method, scheme=Q4_0):
    model = copy.deepcopy(tiny.model)
    rows = choose_integers(model, scheme, [tokens], method, calibration_settings=SETTINGS)
    return model, rows


def codes(model) -> dict[str, torch.Tensor]:
    return {name: fixed_codes_of(layer).codes for name, layer in fake_quantized_layers(model).items()}


@pytest.mark.parametrize("bad", ["all_zero", "mse_clip+loud"])
def test_a_method_that_does_worse_than_rounding_to_nearest_is_not_kept(tiny, tokens, best, bad, capsys):
    nearest, rows_of_nearest = chosen(tiny, tokens, "rtn")
    best(bad)
    guarded, rows = chosen(tiny, tokens, "auto")
    for name, expected in codes(nearest).items():
        assert torch.equal(codes(guarded)[name], expected), name
    norms = {name: part for name, part in tiny.model.named_parameters() if "norm" in name}
    for name, part in guarded.named_parameters():
        assert name not in norms or torch.equal(part, norms[name])
    assert {row["layer"]: row["weight_error"] for row in rows} == {
        r["layer"]: r["weight_error"] for r in rows_of_nearest
    }
    assert f"rounded to nearest, since {bad} predicts" in capsys.readouterr().out


def test_a_method_named_by_the_user_is_not_overruled(tiny, tokens, best):
    best("rtn")
    model, _ = chosen(tiny, tokens, "all_zero")
    assert all(not found.any() for found in codes(model).values())


@torch.no_grad()
def mean_loss(model, sequences) -> float:
    """By transformers' own loss."""
    return sum(float(model(input_ids=row, labels=row).loss) for row in sequences) / len(sequences)


@pytest.mark.parametrize("scheme", ["q4_0+embq4_0", "q4_1", "w4a8-g32+emb4", "w4-g64", "w3-g64", "w2-g64", "w1.58-g64"])
def test_auto_is_never_worse_than_rounding_to_nearest_on_the_text_that_judges(tiny, tokens, scheme):
    parsed = parse_scheme(scheme)
    held_out = choose_automatically(tiny.model, parsed, [tokens]).held_out
    nearest, _ = chosen(tiny, tokens, "rtn", parsed)
    model, _ = chosen(tiny, tokens, "auto", parsed)
    assert held_out and mean_loss(model, held_out) <= mean_loss(nearest, held_out) + 1e-5


def test_what_judges_is_text_that_the_method_does_not_see(tiny, tokens):
    found = choose_automatically(tiny.model, Q4_0, [tokens[:5], tokens[5:]])
    assert found.method == "gptq"
    assert torch.equal(torch.cat([*found.calibration, *found.held_out]), tokens)
    assert len(found.held_out) == 1


def test_of_a_text_longer_than_time_allows_the_next_sequences_judge(tiny, tokens, monkeypatch):
    monkeypatch.setattr(automatic, "affordable_tokens", lambda *_: 3 * tokens.shape[1])
    monkeypatch.setattr(automatic, "HELD_OUT_TOKENS", 2 * tokens.shape[1])
    found = choose_automatically(tiny.model, Q4_0, [tokens])
    assert torch.equal(torch.cat(found.calibration), tokens[:3])
    assert torch.equal(torch.cat(found.held_out), tokens[3:5])


@pytest.mark.parametrize("scheme", ["w8", "q8_0", "w8a8-static", "w4a8-static-g32"])
def test_at_8_bits_and_with_static_ranges_nothing_is_set_apart(tiny, tokens, scheme):
    found = choose_automatically(tiny.model, parse_scheme(scheme), [tokens])
    assert found.held_out == [] and torch.equal(torch.cat(found.calibration), tokens)


@pytest.mark.parametrize("rows", [0, 1])
def test_with_no_text_to_spare_nothing_judges(tiny, tokens, rows):
    given = [tokens[:rows]] if rows else []
    assert choose_automatically(tiny.model, Q4_0, given).held_out == []
    model = copy.deepcopy(tiny.model)
    assert choose_integers(model, Q4_0, given, "auto", calibration_settings=SETTINGS)


# ------------------------------------------------------------------------------ an embedding that is the head as well


def loud_head(model):
    """A model whose head is given some features a hundred times as large as the others, as SmolLM2's is."""
    with torch.no_grad():
        model.model.norm.weight[:3] *= 10
    return model


@torch.no_grad()
def head_inputs(model, tokens) -> torch.Tensor:
    """transformers' own last hidden states, behind the last norm [tokens, features]."""
    return model(input_ids=tokens, output_hidden_states=True).hidden_states[-1].flatten(0, 1)


@pytest.mark.parametrize("scheme", ["q4_0+embq4_0", "w4-g32+emb4", "w8+emb4", "w3-g32+emb3"])
@pytest.mark.parametrize("method", ["mse_clip", "gptq"])
def test_a_tied_embedding_is_rounded_for_the_logits_that_it_gives_as_the_head(tiny, tokens, scheme, method):
    parsed = parse_scheme(scheme)
    model = loud_head(copy.deepcopy(tiny.model))
    weight, inputs = model.get_input_embeddings().weight.detach().clone(), head_inputs(model, tokens)
    choose_integers(model, parsed, [tokens], method, calibration_settings=SETTINGS)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()

    def logit_error(other):
        return float(((other - weight) @ inputs.t()).square().mean())

    found = embedding.quantizer(weight)
    alone = copy.deepcopy(embedding)
    fix_codes(alone, quantize_weight(weight, embedding.spec))
    assert logit_error(found) < 0.8 * logit_error(alone.quantizer(weight))
    assert torch.equal(head.quantizer(weight), found)


def test_rows_of_a_vocabulary_rounded_in_parts_are_those_rounded_at_once(monkeypatch):
    from edgequant.quantization.arithmetic.range_search import choose_grid
    from edgequant.quantization.ptq import gptq

    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(50, 64, generator=generator), torch.randn(200, 64, generator=generator)
    hessian, grid = inputs.t() @ inputs / 200, choose_grid(weight, Q4_0.embedding)
    options = {"dampening_frac": 0.01, "act_order": True, "refit": False}
    (whole,) = gptq.quantize_sharing_input([weight.clone()], hessian, [grid], **options)
    monkeypatch.setattr(gptq, "ROWS", 7)
    (parts,) = gptq.quantize_sharing_input([weight.clone()], hessian, [grid], **options)
    assert torch.equal(whole.quantized.codes, parts.quantized.codes)
