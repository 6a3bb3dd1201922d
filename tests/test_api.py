"""`import edgequant`: light, and the field's verbs on a model that somebody has in hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import edgequant as api
from edgequant.errors import UserError

QUICK = {"tasks": ("domain_perplexity",), "limit": 20, "window": 256, "bootstrap_resamples": 20}
ONLY_VERSION = """
import sys, time
started = time.perf_counter()
import edgequant
print(edgequant.__version__)
print(time.perf_counter() - started)
print([name for name in ("torch", "transformers", "mlflow", "numpy", "yaml") if name in sys.modules])
"""


def test_the_version_is_known_at_once_and_without_torch(environment):
    runs = []
    for _ in range(3):  # the first one may compile bytecode or wait for the disk
        done = subprocess.run([sys.executable, "-c", ONLY_VERSION], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        version, seconds, heavy = done.stdout.splitlines()
        assert (version, heavy) == (api.__version__, "[]")
        runs.append(float(seconds))
    assert min(runs) < 0.3


def test_everything_that_is_offered_is_there_and_nothing_else():
    assert all(callable(getattr(api, name)) for name in api.__all__ if name != "__version__")
    assert set(api.__all__) <= set(dir(api))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        api.quantize  # noqa: B018


def test_quantize_evaluate_save_and_load_by_the_names_of_schemes(tiny, tmp_path):
    before = api.evaluate(tiny.model, tiny.tokenizer, **QUICK).metrics
    errors = api.quantize(tiny.model, "w4a8-g32+emb4")
    after = api.evaluate(tiny.model, tiny.tokenizer, **QUICK).metrics
    assert {row["bits"] for row in errors} == {4}
    assert before["domain/perplexity"] != after["domain/perplexity"]
    saved = api.save(tiny.model, tiny.tokenizer, tmp_path / "small", api.parse_scheme("w4a8-g32+emb4"))
    loaded = api.load(str(tmp_path / "small"), device="cpu")
    again = api.evaluate(loaded.model, loaded.tokenizer, checkpoint=tmp_path / "small", **QUICK).metrics
    assert again["domain/perplexity"] == pytest.approx(after["domain/perplexity"], rel=1e-6)
    assert again["size/bits_per_parameter"] == pytest.approx(8 * saved.weight_bytes / before["size/parameters"])
    tokens = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(plain(input_ids=tokens).logits, loaded.model(input_ids=tokens).logits)


def test_what_any_training_loop_trains_is_what_convert_leaves(tiny):
    tokens = torch.arange(64).view(2, 32)
    api.prepare(tiny.model, "w4-g32", learnable_scales=True)
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = tiny.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    with torch.no_grad():
        trained = tiny.model(input_ids=tokens).logits
        api.convert(tiny.model)
        torch.testing.assert_close(tiny.model(input_ids=tokens).logits, trained, rtol=1e-4, atol=1e-4)
    assert losses[-1] < losses[0]


def test_a_model_that_was_never_quantized_is_not_saved_as_a_checkpoint(tiny, tmp_path):
    with pytest.raises(UserError, match=r"edgequant\.quantize or edgequant\.prepare"):
        api.save(tiny.model, tiny.tokenizer, tmp_path / "small", "w8")
    assert list(tmp_path.iterdir()) == []
