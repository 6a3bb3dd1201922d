"""Mixed precision: sensitivities predict losses, nothing that fits is better, files are as large as said."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
import yaml
from random_architectures import KINDS, make
from scipy.stats import spearmanr
from torch.nn import functional

from edgequant import models
from edgequant.corpora.disaster.corpus import bundled_documents
from edgequant.errors import UserError
from edgequant.export.gguf.write import write_gguf
from edgequant.quantization import checkpoint
from edgequant.quantization.arithmetic.affine import dequantize_weight, quantize_weight
from edgequant.quantization.layers.convert import prepare
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.layers.targets import find_targets
from edgequant.quantization.mixed_precision.bit_allocation import choose_layer_bits
from edgequant.quantization.mixed_precision.checkpoint_size import checkpoint_sizes
from edgequant.quantization.mixed_precision.sensitivity import fisher_diagonals, loss_increase, weight_of
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import Scheme, parse_scheme
from edgequant.quantization.size_budget import parse_size_budget

LENGTH = 64
BASE = parse_scheme("w4-g32+emb4")


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    """Shuffled rows of the bundled documents' bytes, [n, 64]."""
    written = "".join(document.text for document in bundled_documents("train") if document.language == "en")
    tokens = torch.tensor(list(written.encode()[:200_000]))
    rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def trained(_tiny, text):
    """`tiny` after a short training: a random model has no loss to lose."""
    model = copy.deepcopy(_tiny.model).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in text[: 8 * 90].split(8):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False)


def loss(model, rows: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=rows).logits[:, :-1]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))


@torch.no_grad()
def measured_loss(model, rows: torch.Tensor) -> float:
    return float(loss(model, rows))


@torch.no_grad()
def divergence(model, other, rows: torch.Tensor) -> float:
    """Mean KL divergence of the other's predictions, nats: the increase of the loss on text that the model would write.

    On the documents' text a short training leaves a slope, whose part of the increase has either sign.
    """
    ours, theirs = (m(input_ids=rows).logits.double().log_softmax(-1) for m in (model, other))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.mark.long
def test_predicted_and_measured_increases_of_the_loss_rank_layers_and_bits_alike(trained, text):
    rows, layers = text[-16:], find_targets(trained, BASE).weights
    fisher = fisher_diagonals(trained, layers, list(rows))
    predicted, measured = [], []
    for layer, bits in itertools.product(layers, (2, 3, 4, 5)):
        other, spec = copy.deepcopy(trained), replace(BASE.weight, bits=bits)
        weight = weight_of(other, layer)
        predicted.append(loss_increase(weight, fisher[layer], spec))
        weight.copy_(dequantize_weight(quantize_weight(weight, spec), weight.shape))
        measured.append(divergence(trained, other, rows))
    assert spearmanr(predicted, measured).statistic > 0.9
    assert 0.5 < sum(predicted) / sum(measured) < 2  # nats, not just an order


def test_more_bits_lose_less_in_every_layer(trained, text):
    layers = find_targets(trained, BASE).weights
    fisher = fisher_diagonals(trained, layers, list(text[-8:]))
    for layer in layers:
        losses = [
            loss_increase(weight_of(trained, layer), fisher[layer], replace(BASE.weight, bits=bits))
            for bits in range(2, 9)
        ]
        assert losses == sorted(losses, reverse=True)


def test_fisher_diagonals_are_the_expected_squared_gradients_over_the_models_own_tokens(_tiny):
    """Against the sum over the whole vocabulary, which nothing larger than `tiny` could afford."""
    model, layer, tokens = copy.deepcopy(_tiny.model), "model.layers.1.mlp.down_proj", torch.arange(60, 64)
    weight = weight_of(model, layer).requires_grad_(True)
    predictions = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
    expected = torch.zeros_like(weight)
    for position in predictions:
        for log_probability in position:
            (gradient,) = torch.autograd.grad(log_probability, weight, retain_graph=True)
            expected += log_probability.exp().detach() * gradient**2 / len(predictions)
    found = fisher_diagonals(model, [layer], [tokens] * 300)[layer]
    assert float(found.sum()) == pytest.approx(float(expected.sum()), rel=0.1)
    assert spearmanr(found.sum(0), expected.sum(0)).statistic > 0.9  # input by input


def test_the_model_is_left_as_it_was(trained, text):
    model = copy.deepcopy(trained)
    model.model.norm.weight.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fisher_diagonals(model, find_targets(model, BASE).weights, list(text[:2]))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
        assert parameter.requires_grad == (name == "model.norm.weight")


def test_mixed_bits_lose_less_than_equal_bits_in_the_same_size(trained, text):
    targets = find_targets(trained, BASE)
    size, _ = checkpoint_sizes(trained, BASE, targets, (3,), "bfloat16").range
    budget = replace(parse_size_budget(f"megabytes={size / 1e6:.6f}"), candidates=(2, 3, 4, 5, 6, 8))
    mixed = choose_layer_bits(trained, BASE.with_budget(budget), list(text[1000:1032]), dtype="bfloat16")
    assert mixed.size <= size + 1
    lost = []
    for scheme in (mixed.scheme, replace(BASE, layer_bits=tuple((name, 3) for name in targets.names))):
        rounded = copy.deepcopy(trained)
        quantize(rounded, scheme)
        lost.append(divergence(trained, rounded, text[-100:]))
    assert lost[0] < 0.7 * lost[1]


def test_a_budget_that_is_too_small_names_those_that_can_be_met(trained, text):
    scheme = parse_scheme("w4-g32@4.5bpp")  # the embedding stays in 16 bits
    with pytest.raises(
        UserError, match=r"cannot be met.*bits_per_parameter=([\d.]+) to bits_per_parameter="
    ) as refusal:
        choose_layer_bits(trained, scheme, list(text[:1]), dtype="bfloat16")
    named = str(refusal.value).split("bits_per_parameter=")[1].split()[0]
    smallest = parse_scheme("w4-g32").with_budget(parse_size_budget(f"bits_per_parameter={named}"))
    found = choose_layer_bits(trained, smallest, list(text[:1]), dtype="bfloat16")
    assert {bits for _, bits in found.scheme.layer_bits} <= {3, 4}


def test_a_budget_larger_than_anything_gives_every_layer_the_most_and_says_so(trained, text):
    found = choose_layer_bits(trained, parse_scheme("w4-g32+emb4@30bpp"), list(text[:1]), dtype="bfloat16")
    assert {bits for _, bits in found.scheme.layer_bits} == {8} and "larger than anything" in found.note


def saved(model, tokenizer, scheme: Scheme, folder, dtype: str, rows=None):
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rounded = copy.deepcopy(model)
    quantize(rounded, scheme, calibration=rows)
    models.cast(rounded, dtype)
    return checkpoint.save(rounded, tokenizer, folder, scheme, parameters=parameters, made_from="tiny")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["w4a8-g32+emb4", "w8a8-static"])
def test_the_file_is_within_the_budget_and_loads_as_it_was_computed(kind, tied, name, _tiny, tmp_path):
    model, rows = make(kind, tied), torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1))
    scheme = parse_scheme(name)
    low, high = checkpoint_sizes(model, scheme, find_targets(model, scheme), (3, 8), "float32").range
    budgeted = scheme.with_budget(parse_size_budget(f"megabytes={(0.7 * low + 0.3 * high) / 1e6:.6f}"))
    chosen = choose_layer_bits(model, budgeted, list(rows), dtype="float32")
    assert len({bits for _, bits in chosen.scheme.layer_bits}) > 1
    made = saved(model, _tiny.tokenizer, chosen.scheme, tmp_path / name, "float32", [rows])
    budget = chosen.scheme.budget.bytes_for(made.parameters)
    assert 0.95 * budget < made.weight_bytes <= chosen.size <= budget
    opened = checkpoint.open_checkpoint(made.folder)
    assert opened.scheme == chosen.scheme
    loaded = models.load(str(made.folder), device="cpu").model
    rounded = copy.deepcopy(model)
    quantize(rounded, chosen.scheme, calibration=[rows])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=rows).logits, rounded(input_ids=rows).logits, rtol=1e-3, atol=1e-3)


def test_predicted_sizes_are_those_of_files_within_a_per_cent(trained, _tiny, tmp_path):
    targets = find_targets(trained, BASE)
    sizes = checkpoint_sizes(trained, BASE, targets, (3, 4, 8), "bfloat16")
    for bits in (3, 4, 8):
        scheme = replace(BASE, layer_bits=tuple((name, bits) for name in targets.names))
        made = saved(trained, _tiny.tokenizer, scheme, tmp_path / str(bits), "bfloat16")
        predicted = sizes.total(dict.fromkeys(targets.weights, bits))
        assert made.weight_bytes <= predicted < 1.01 * made.weight_bytes


@pytest.fixture(scope="module")
def mixed(trained, text):
    return choose_layer_bits(trained, parse_scheme("w4-g32+emb4@4.6bpp"), list(text[:8]), dtype="bfloat16").scheme


def test_a_mixed_scheme_survives_yaml(mixed):
    assert Scheme.from_dict(yaml.safe_load(yaml.safe_dump(mixed.to_dict()))) == mixed
    assert parse_scheme(mixed.name) == replace(mixed, layer_bits=())


def test_names_tell_the_budget():
    assert BASE.with_budget(parse_size_budget("bits_per_parameter=4.50")).name == "w4-g32+emb4@4.5bpp"
    assert BASE.with_budget(parse_size_budget("megabytes=80")).name == "w4-g32+emb4@80MB"
    assert parse_scheme("w4-g32+emb4@80MB").budget == parse_size_budget("megabytes=80")
    for exact in ("megabytes=1234.5678", "megabytes=999999", "megabytes=0.05"):
        budget = parse_size_budget(exact)
        assert parse_scheme(BASE.with_budget(budget).name).budget == budget


@pytest.mark.parametrize("name", ["w4-g32@", "w4-g32@4.5", "w4@bpp", "q4_0@80MB", "bnb-nf4@80MB", "w4@2bpp", "w4@0MB"])
def test_a_name_with_an_impossible_budget_is_refused(name):
    with pytest.raises(UserError):
        parse_scheme(name)


@pytest.mark.parametrize(
    "text", ["4.5", "bits=4.5", "megabytes=", "megabytes=-3", "bits_per_parameter=nan", "megabytes=x"]
)
def test_a_budget_that_cannot_be_read_is_refused_with_an_example(text):
    with pytest.raises(UserError, match=r"size.budget"):
        parse_size_budget(text)


@pytest.mark.parametrize("method", ["awq", "gptq+signround"])
def test_every_method_gives_each_layer_its_bits(trained, mixed, text, method):
    model = copy.deepcopy(trained)
    rows = quantize(
        model, mixed, calibration=[text[:4]], method=method, settings=PtqSettings(signround_steps=3, alphas=3)
    )
    given = {row["layer"]: row["bits"] for row in rows if "bits" in row}
    assert given == {name: bits for name, bits in mixed.layer_bits if name in given}
    assert len(given) == 15 and len({*given.values()}) > 1
    assert measured_loss(model, text[-100:]) < measured_loss(trained, text[-100:]) + 0.1


def test_training_simulates_each_layers_own_bits(trained, mixed):
    model = copy.deepcopy(trained)
    prepare(model, mixed, learnable_scales=True)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizedLinear)}
    for name, layer in layers.items():
        assert layer.spec.bits == dict(mixed.layer_bits)[name]
        groups = layer.quantizer(layer.weight).detach().view(layer.out_features, -1, 32)
        assert max(len(group.unique()) for group in groups[:, 0]) <= 2**layer.spec.bits


def test_bits_have_to_be_chosen_before_a_model_is_quantized(trained):
    with pytest.raises(UserError, match="bits of each layer have to be chosen first"):
        prepare(copy.deepcopy(trained), parse_scheme("w4-g32+emb4@4.6bpp"))


def test_bits_for_a_layer_that_is_not_there_are_refused(trained):
    scheme = replace(BASE, layer_bits=(("model.layers.7.mlp.up_proj", 3),))
    with pytest.raises(UserError, match=r"model\.layers\.7\.mlp\.up_proj"):
        prepare(copy.deepcopy(trained), scheme)


def test_a_mixed_checkpoint_becomes_a_gguf_file_whose_four_bit_layers_keep_their_integers(trained, _tiny, tmp_path):
    others = (("model.layers.0.mlp.up_proj", 3), ("model.layers.1.self_attn.q_proj", 6))  # what is chosen varies by CPU
    made = saved(trained, _tiny.tokenizer, replace(BASE, layer_bits=others), tmp_path / "made", "float32")
    loaded = models.load(str(made.folder), device="cpu")
    written = write_gguf(loaded, tmp_path / "mixed.gguf", "q4_1")
    matrices = len(integer_layers(loaded.model)) - 1  # a tied head has none of its own
    assert any(note.startswith(f"{matrices - len(others)} of {matrices} ") for note in written.notes)
    again = models.load(str(written.path), dtype="float32", device="cpu").model
    assert set(dict(again.named_parameters())) == set(dict(trained.named_parameters()))
