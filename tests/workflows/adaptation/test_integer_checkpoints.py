"""`finetune` of a quantised checkpoint: within its integers, or beside them; LoftQ; all weights; what contradicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import checkpoint_of

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.models.sources import ModelSource
from edgequant.quantization import checkpoint
from edgequant.training.lora import attach
from edgequant.training.settings import LoraSettings
from edgequant.workflows.adaptation import selection
from edgequant.workflows.adaptation.bases import check_base
from edgequant.workflows.adaptation.loftq import begin_adapters, begin_updates, best_product
from edgequant.workflows.finetune import finetune
from edgequant.workflows.settings import RunSettings

PLACE = RunSettings(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def rounded(_tiny, tmp_path_factory) -> Path:
    """`tiny` in w4a8-g32+emb4."""
    folder = tmp_path_factory.mktemp("rounded") / "checkpoint"
    checkpoint_of(_tiny, "w4a8-g32+emb4", folder)
    return folder


def adapted(rounded, short, quick, tmp_path, **settings):
    training = replace(short, steps=8, learning_rate=1e-2)
    settings = {"lora": LoraSettings(rank=4, alpha=8), "run": PLACE, "model": str(rounded)} | settings
    evaluation = replace(quick, tasks=("domain_perplexity",))
    return finetune(training=training, evaluation=evaluation, output=str(tmp_path / "made"), **settings)


def test_integers_learn_the_domain_and_keep_scheme_and_size(store, rounded, short, quick, tmp_path):
    result = adapted(rounded, short, quick, tmp_path)
    assert [row["variant"] for row in result.rows] == ["quantized", "finetuned"]
    before, after = (row["domain/perplexity"] for row in result.rows)
    assert after < 0.97 * before
    made, base = checkpoint.open_checkpoint(result.checkpoint), checkpoint.open_checkpoint(rounded)
    assert (made.scheme, made.weight_bytes) == (base.scheme, base.weight_bytes)
    assert result.metrics["parity/relative_logit_difference"] < 1e-3 and result.metrics["train/moved_integers"] > 0
    runs = {run.tags.get("edgequant.variant"): run for run in tracking.find_runs()}
    assert {runs[name].tags["edgequant.scheme"] for name in ("quantized", "finetuned")} == {"w4a8-g32+emb4"}
    assert not (tmp_path / "made" / "adapter").exists()


def test_integers_are_held_to_the_floating_point_model_on_text_that_it_wrote(
    store, rounded, short, quick, tmp_path, monkeypatch
):
    """What rounding did to them is no part of what they are not to forget."""
    held, wrote = [], []
    anchored, text_of = selection.anchor_of, selection.text_of
    monkeypatch.setattr(selection, "anchor_of", lambda *given: held.append(given[1].model) or anchored(*given))
    monkeypatch.setattr(selection, "text_of", lambda *given: wrote.append(given[1].model) or text_of(*given))
    adapted(rounded, short, quick, tmp_path, baseline="tiny")
    adapted(rounded, short, quick, tmp_path / "unknown")
    assert [getattr(model, "is_quantized", False) for model in held] == [False, True]
    assert [getattr(model, "is_quantized", False) for model in wrote] == [False, True]


def test_adapters_that_stay_apart_are_loaded_with_their_integers(store, rounded, short, quick, tmp_path):
    result = adapted(rounded, short, quick, tmp_path, apart=True)
    before, after = (row["domain/perplexity"] for row in result.rows)
    assert after < 0.97 * before and result.checkpoint == str(tmp_path / "made" / "adapter")
    loaded = models.load(result.checkpoint, dtype="float32", device="cpu").model
    layer = loaded.get_base_model().model.layers[0].mlp.down_proj
    assert layer.get_base_layer().packed.codes.dtype == torch.uint8
    ours = models.load(str(rounded), device="cpu").model.model.layers[0].mlp.down_proj
    assert torch.equal(layer.get_base_layer().packed.codes, ours.packed.codes)


def test_all_weights_of_a_floating_point_model_train_at_rank_0(store, short, quick, tmp_path):
    result = adapted("tiny", short, quick, tmp_path, lora=LoraSettings(rank=0))
    assert result.rows[1]["domain/perplexity"] < 0.9 * result.rows[0]["domain/perplexity"]
    embedding = models.load(result.checkpoint, dtype="float32", device="cpu").model.get_input_embeddings().weight
    assert not torch.equal(
        embedding, models.load("tiny", dtype="float32", device="cpu").model.model.embed_tokens.weight
    )


# ---------------------------------------------------------------------------------------------------------- LoftQ


def weight_error(model, tiny, dequantized) -> float:
    """Of all targeted layers against the floating-point ones."""
    pairs = [(dequantized(name), tiny.model.get_submodule(name).weight) for name in names_of(tiny)]
    return sum(float((found - wanted).norm() ** 2) for found, wanted in pairs)


def names_of(tiny):
    return [name for name, module in tiny.model.named_modules() if name.endswith(("down_proj", "q_proj"))]


def test_adapters_begin_with_what_rounding_took_away(rounded, tiny):
    from edgequant.quantization.adapters.integer_model import adapt_integers

    model = models.load(str(rounded), dtype="float32", device="cpu").model
    model = attach(adapt_integers(model, rank=0, alpha=1.0, targets="").model, LoraSettings(rank=8), made_from="x")

    def stands_for(name):
        layer = model.get_base_model().get_submodule(name)
        base = layer.get_base_layer()
        return (base.quantizer(base.weight) + layer.get_delta_weight("default")).detach()

    before = weight_error(model, tiny, stands_for)
    begin_adapters(model, "tiny")
    assert weight_error(model, tiny, stands_for) < 0.9 * before


def test_updates_in_steps_begin_within_their_steps(rounded, tiny):
    from edgequant.quantization.adapters.integer_model import adapt_integers, share_of_moved

    integers = adapt_integers(models.load(str(rounded), device="cpu").model, rank=8, alpha=8.0)
    begin_updates(integers, "tiny")
    quantizer = integers.model.model.layers[0].mlp.down_proj.quantizer
    assert float(quantizer.b.abs().max()) > 0 and share_of_moved(integers) < 0.02


def test_the_best_product_is_that_of_the_largest_singular_values():
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    b, a = best_product(matrix, 2)
    left = torch.linalg.svdvals(matrix)[2:].square().sum()
    torch.testing.assert_close((matrix - b @ a).square().sum(), left)
    wide_b, wide_a = best_product(matrix, 8)
    assert wide_a.shape == (8, 9)
    torch.testing.assert_close(wide_b @ wide_a, matrix)


def test_another_model_is_no_start(rounded, tiny, tmp_path):
    from edgequant.quantization.adapters.integer_model import adapt_integers

    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.normal_()
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    integers = adapt_integers(models.load(str(rounded), device="cpu").model, rank=2, alpha=4.0)
    with pytest.raises(UserError, match=r"lora.loftq_from must be the model that was quantised, got .*another matrix"):
        begin_updates(integers, str(tmp_path))


# -------------------------------------------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    ("model", "base", "settings", "message"),
    [
        ("rounded", "bnb-nf4", {}, r"base must be auto .* integers already \(w4a8-g32\+emb4\), got bnb-nf4"),
        ("rounded", "float", {}, "base must be auto"),
        ("rounded", "auto", {"apart": True, "register": True}, "apart must be false, got true: .* register"),
        ("rounded", "auto", {"apart": True, "lora": LoraSettings(rank=0)}, "lora.rank must be at least 1"),
        ("rounded", "auto", {"lora": LoraSettings(dropout=0.1)}, "lora.dropout must be 0"),
        ("rounded", "auto", {"lora": LoraSettings(rank=0, loftq_from="tiny")}, "loftq_from needs lora.rank"),
        ("tiny", "bnb-nf4", {"register": True}, "register true needs base auto, got base bnb-nf4"),
        ("tiny", "bnb-nf4", {"apart": True}, "base bnb-nf4 keeps them apart anyway"),
        ("tiny", "auto", {"lora": LoraSettings(loftq_from="tiny")}, "loftq_from must be left out for 'tiny'"),
        ("tiny", "auto", {"baseline": "tiny"}, "baseline must be left out, got 'tiny'"),
        ("rounded", "auto", {"apart": True, "baseline": "tiny"}, "baseline must be left out, got 'tiny'"),
    ],
)  # fmt: skip
def test_settings_that_contradict_are_refused_before_anything_is_loaded(rounded, model, base, settings, message):
    sources = {"tiny": ModelSource("tiny", "tiny", "tiny"), "rounded": models.resolve(str(rounded))}
    given = {"lora": LoraSettings(), "apart": False, "register": False} | settings
    with pytest.raises(UserError, match=message):
        check_base(sources[model], base, given.pop("lora"), **given)
