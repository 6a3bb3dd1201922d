"""A head of its own under a config.json that says tied: trained, quantised, reloaded and exported as what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_architectures import make

from edgequant import models
from edgequant.export.gguf.write import write_gguf
from edgequant.models.same_function.comparison import relative_difference
from edgequant.models.tiny import tiny_tokenizer
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(60)[None]).logits[0].float()


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["w8a8+emb8", "w8-g32"])
def test_checkpoint_reload_and_export_agree_with_the_weights(store, tmp_path, quick, short, scheme):
    meant = make("qwen2", tied=False)
    meant.config.tie_word_embeddings = True
    meant.all_tied_weights_keys = {}
    meant.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    made = qat(
        model=str(tmp_path / "model"), scheme=scheme, dataset="disaster",
        training=replace(short, steps=2, learning_rate=1e-6), output=str(tmp_path / "made"), register=False,
        evaluation=replace(quick, tasks=("domain_perplexity",), limit=1),
        run=RunSettings(device="cpu", dtype="float32"),
    )  # fmt: skip
    reloaded = models.load(str(made.checkpoint), dtype="float32", device="cpu")
    assert relative_difference(logits(meant), logits(reloaded.model)) < 0.1
    write_gguf(reloaded, tmp_path / "made.gguf", "f32")
    assert relative_difference(logits(reloaded.model), logits(models.load(str(tmp_path / "made.gguf")).model)) < 0.05
