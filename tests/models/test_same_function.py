"""Logits before and after: what rounding explains passes, what changes the function does not, heads are as stored."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from random_architectures import KINDS, make
from torch import nn
from transformers import AutoModelForCausalLM

from edgequant import models
from edgequant.corpora.disaster.corpus import bundled_documents
from edgequant.errors import UserError
from edgequant.models.same_function import comparison
from edgequant.models.same_function.comparison import (
    activation_limit,
    can_be_probed,
    check_same,
    probe_logits,
    probe_tokens,
    relative_difference,
    rounding_limit,
)
from edgequant.models.same_function.ties import is_tied
from edgequant.models.same_function.written import load_written
from edgequant.models.tiny import tiny_tokenizer
from edgequant.quantization import checkpoint
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme

TOKENS = torch.arange(40)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits[0].float()


def test_the_fixed_text_is_a_bundled_documents():
    assert any(comparison.PROBE_TEXT in document.text for document in bundled_documents())


def test_the_text_is_tokenised_by_the_models_own_tokenizer(tiny):
    tokens = probe_tokens(tiny.model, tiny.tokenizer)
    assert tokens.shape == (1, 64) and tiny.tokenizer.decode(tokens[0]) == comparison.PROBE_TEXT[:64]


def test_a_part_of_a_model_is_not_compared():
    assert not can_be_probed(nn.Linear(4, 4)) and can_be_probed(make("qwen2", True))


def test_the_difference_is_the_one_that_changes_probabilities():
    before = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    assert relative_difference(before, before + 3) < 1e-6  # softmax does not see it
    noise = torch.randn(5, 50, generator=torch.Generator().manual_seed(1)) * 0.01
    expected = float((noise - noise.mean(-1, keepdim=True)).norm() / (before - before.mean(-1, keepdim=True)).norm())
    assert relative_difference(before, before + noise) == pytest.approx(expected, rel=1e-4)


def test_infinities_count_only_where_one_side_has_them():
    before = torch.randn(2, 8)
    masked = before.index_fill(1, torch.tensor([7]), -math.inf)
    assert relative_difference(masked, masked) == 0 and relative_difference(before, masked) == math.inf
    assert relative_difference(torch.zeros(2, 8), torch.zeros(2, 8)) == 0


def test_the_mode_of_the_model_stays(tiny):
    tiny.model.train()
    probe_logits(tiny.model, probe_tokens(tiny.model))
    assert tiny.model.training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_to_a_type_is_within_its_limit_and_a_lost_bias_or_head_is_not(kind, dtype):
    """Of bfloat16, a model cast from float32 errs as much as one whose products are rounded anew."""
    exact = make(kind, tied=False)
    model = models.cast(copy.deepcopy(exact), dtype)
    tokens = probe_tokens(model)
    before, limit = probe_logits(model, tokens), rounding_limit(model)
    assert relative_difference(probe_logits(exact, tokens), before) < limit / 2
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)  # the head tied by mistake
    with pytest.raises(UserError, match=r"^tying changed what the model computes: .* differ by \d"):
        check_same(before, probe_logits(model, tokens), limit, "tying")


def test_rounding_activations_twice_is_within_what_was_measured():
    """Two independent roundings differ by sqrt(2) of the error of one."""
    generator = torch.Generator().manual_seed(0)
    exact, *errors = (torch.randn(64, 500, generator=generator) for _ in range(3))
    one, other = (exact + 0.05 * error for error in errors)
    assert relative_difference(one, other) < activation_limit(exact, one) < 1.6 * relative_difference(one, other)


# ---------------------------------------------------------------------------------------------- heads and what is said


def folder_with(folder: Path, kind: str, *, head: str, says: bool | None):
    """A transformers folder whose head is its own, equal to the embedding, or absent; returns what is meant."""
    model = make(kind, tied=head == "absent")
    if head == "equal":
        with torch.no_grad():
            model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = says
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return model


@pytest.mark.parametrize("scheme", ["w8", "w8+emb8", "w4a8-g32+emb4"])
@pytest.mark.parametrize(
    ("head", "says"), [("own", True), ("equal", True), ("absent", True), ("own", False), ("equal", False)]
)
@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_a_model_is_what_its_weights_say_and_so_is_its_checkpoint(tmp_path, capfd, kind, head, says, scheme):
    meant = folder_with(tmp_path / "model", kind, head=head, says=says)
    loaded = models.load(str(tmp_path / "model"), dtype="float32", device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(meant))
    assert is_tied(loaded.model) == bool(loaded.model.config.tie_word_embeddings) == (says and head != "own")
    assert ("a head of its own" in capfd.readouterr().out) == (head == "own" and says)
    quantize(loaded.model, parse_scheme(scheme))
    made = tmp_path / "checkpoint"
    checkpoint.save(loaded.model, loaded.tokenizer, made, parse_scheme(scheme), parameters=1, made_from="model")
    reloaded = load_written(made, loaded.model, loaded.tokenizer, device="cpu", rounded_activations=True).model
    torch.testing.assert_close(logits(reloaded), logits(loaded.model))
    bits = 4 if "4" in scheme else 8
    assert relative_difference(logits(meant), logits(reloaded)) < {8: 0.05, 4: 0.5}[bits]


@pytest.mark.parametrize("kind", ["qwen2", "llama", "phi", "gemma3"])
def test_a_head_that_is_neither_there_nor_said_to_be_the_embedding_is_refused(tmp_path, kind):
    folder_with(tmp_path, kind, head="absent", says=False)
    with pytest.raises(
        UserError, match=r"lacks tensor lm_head\.weight; copy the whole folder again, or correct config\.json"
    ):
        models.load(str(tmp_path), dtype="float32", device="cpu")


def test_a_model_untied_in_memory_is_quantised_and_saved_as_it_is(tmp_path):
    """Its configuration and transformers' bookkeeping still say tied."""
    model = make("llama", tied=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 0.3 * torch.randn_like(model.lm_head.weight))
    expected, scheme = logits(model), parse_scheme("w8+emb8")
    quantize(model, scheme)
    checkpoint.save(model, tiny_tokenizer(), tmp_path / "made", scheme, parameters=1, made_from="x")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32).eval()
    assert relative_difference(expected, logits(reloaded)) < 0.05


def test_a_checkpoint_that_is_read_as_another_model_is_told(tmp_path, tiny, tiny_folder):
    other = copy.deepcopy(tiny.model)
    with torch.no_grad():
        other.model.norm.weight.mul_(torch.linspace(0.5, 2, 128))
    with pytest.raises(
        UserError, match=r"writing the model to .* and loading it again changed what the model computes"
    ):
        load_written(tiny_folder, other, tiny.tokenizer, device="cpu", rounded_activations=False)
