"""onnxruntime-genai computes what the torch reference computes, for the four architectures: tokens, scores, answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from beside_torch import greedy_tokens_alike, perplexities
from small_models import ARCHITECTURES, TEXT, checkpoint_of, small

from edgequant import models
from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.backends.onnx import timed_alone
from edgequant.evaluation.backends.onnx.sequence import GenaiModel, GenaiSequence
from edgequant.evaluation.backends.onnx_model import OnnxModel
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.efficiency.shipped import shipped_metrics
from edgequant.models.onnx import library

pytestmark = pytest.mark.skipif(library.missing() is not None, reason="onnxruntime-genai is not installed as pinned")
NEW_TOKENS, ALIKE = 64, 60


class Both(NamedTuple):
    """One checkpoint, as exported in onnxruntime-genai and reloaded in torch."""

    ours: OnnxModel
    reference: TransformersModel


@pytest.fixture(scope="module", params=["qwen2", "llama", "phi", "gemma3"])
def both(request, tmp_path_factory) -> Both:
    from edgequant.export.onnx.write import write_onnx

    folder = Path(tmp_path_factory.mktemp("agree"))
    loaded = checkpoint_of(ARCHITECTURES[request.param](True), "w4-g32+emb4", folder / "checkpoint")
    write_onnx(loaded, folder / "onnx")
    model = models.cast(loaded.model, "float32")
    return Both(OnnxModel(folder / "onnx", threads=1), TransformersModel(model, loaded.tokenizer))


def test_it_has_the_evaluations_interface_and_the_same_tokens(both: Both) -> None:
    assert isinstance(both.ours, LanguageModel)
    texts = [*TEXT[:3], "\n".join(TEXT[:3])]
    assert both.ours.encode(texts) == both.reference.encode(texts)
    assert (both.ours.bos, both.ours.context_length) == (both.reference.bos, both.reference.context_length)
    assert both.ours.decode(both.ours.encode(texts)[0]) == both.reference.decode(both.reference.encode(texts)[0])


def test_perplexity_is_within_half_a_per_cent(both: Both) -> None:
    ours, theirs = perplexities(*both)
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_log_likelihoods_of_one_token_and_of_several_agree(both: Both) -> None:
    choices = both.ours.encode_choices(TEXT[:3], (" yes", " no", " one more: it is long"))
    ours, theirs = (dict(model.log_likelihoods(choices)) for model in both)
    for at in range(len(choices)):
        assert ours[at] == pytest.approx(theirs[at], rel=1e-4)


def test_greedy_tokens_and_answers_agree(both: Both) -> None:
    assert greedy_tokens_alike(*both, NEW_TOKENS) >= ALIKE
    prompts = both.ours.encode(TEXT[:3])
    assert dict(both.ours.generate(prompts, 12)) == dict(both.reference.generate(prompts, 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from edgequant.export.onnx.write import write_onnx

    place = Path(tmp_path_factory.mktemp("folder"))
    loaded = checkpoint_of(small("llama", True), "w4a8-g32+emb4", place / "checkpoint")
    return write_onnx(loaded, place / "onnx").path


def test_logits_are_bounded_and_hardly_depend_on_how_a_text_is_cut(folder) -> None:
    model = GenaiModel(folder, threads=1)
    tokens = (list(range(5, 60)) * 5)[:250]
    few, usual = (GenaiSequence(model, context=256, outputs=count) for count in (7, None))
    assert usual.outputs * model.vocabulary * 4 <= 32 << 20
    found = [list(one.rows(tokens, 180)) for one in (few, usual)]
    assert [at for rows in found[0] for at in rows.positions] == list(range(180, 250))
    cut, whole = (np.concatenate([rows.logits for rows in each]) for each in found)
    assert np.abs(cut - whole).max() < 1e-5
    again = np.concatenate([rows.logits for rows in few.rows([*tokens[:100], *tokens[:80]], 150)])
    assert np.array_equal(again, np.concatenate([r.logits for r in few.rows([*tokens[:100], *tokens[:80]], 150)]))


def test_a_shipped_folder_is_measured_by_its_path_alone(folder) -> None:
    found = shipped_metrics(folder, threads=1, prompt_length=16, new_tokens=8)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert found["deploy/size_gb"] == size / 1e9 and found["deploy/threads"] == 1
    for name in ("load_ms", "time_to_first_token_ms", "prefill_ms_per_token", "decode_ms_per_token"):
        assert 0 < found[f"deploy/{name}_ci_low"] <= found[f"deploy/{name}"] <= found[f"deploy/{name}_ci_high"]
    assert 0 < found["deploy/peak_rss_gb"] < 0.3


def test_timed_processes_hold_neither_torch_nor_transformers() -> None:
    modules = "torch", "transformers", "onnx", "onnx_ir"
    program = f"import sys, {timed_alone.__name__}; print([name for name in {modules} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_knows_its_scheme_size_and_weights(folder) -> None:
    model = OnnxModel(folder, threads=1)
    sizes = model.footprint()
    assert sizes["size/checkpoint_gb"] == sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    assert sizes["size/parameters"] == small("llama", True).model.num_parameters()
    assert model.scheme == "w4a8-g32+emb4" and len(model.weights_digest()) == 64


def test_a_changed_or_broken_folder_is_named(folder, tmp_path) -> None:
    import shutil

    copied = shutil.copytree(folder, tmp_path / "copied")
    with (copied / "model.onnx.data").open("r+b") as file:
        file.write(b"\0\0\0\0")
    with pytest.raises(UserError, match=r"model\.onnx\.data was changed since edgequant wrote it"):
        OnnxModel(copied)
    (copied / "edgequant-output.json").unlink()
    (copied / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="copied could not be loaded in onnxruntime-genai"):
        OnnxModel(copied)
    (copied / "genai_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"must say model\.decoder\.head_size"):
        OnnxModel(copied)
