"""llama.cpp computes what the torch reference computes, for the four architectures: same tokens, scores, answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pytest
from beside_torch import greedy_tokens_alike, perplexities
from small_models import ARCHITECTURES, TEXT

from edgequant import models
from edgequant.evaluation.backends.llama_cpp_model import LlamaCppModel
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.tasks.perplexity import score_documents
from edgequant.export.gguf.write import write_gguf

pytestmark = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
NEW_TOKENS, ALIKE = 64, 60


class Both(NamedTuple):
    """One file, in llama.cpp and as our reader gives it to torch."""

    ours: LlamaCppModel
    reference: TransformersModel


@pytest.fixture(scope="module", params=["qwen2", "llama", "phi", "gemma3"])
def both(request, tmp_path_factory) -> Both:
    file = Path(tmp_path_factory.mktemp("agree")) / f"{request.param}.gguf"
    write_gguf(ARCHITECTURES[request.param](False), file, "f16")
    loaded = models.load(str(file), dtype="float32", device="cpu")
    return Both(LlamaCppModel(file, threads=1), TransformersModel(loaded.model, loaded.tokenizer))


def test_the_tokens_are_the_same(both: Both) -> None:
    texts = [*TEXT[:3], "\n".join(TEXT[:3])]
    assert both.ours.encode(texts) == both.reference.encode(texts)
    assert (both.ours.bos, both.ours.context_length) == (both.reference.bos, both.reference.context_length)
    continuations = (" yes", " no", " a longer one")
    assert both.ours.encode_choices(TEXT[:2], continuations) == both.reference.encode_choices(TEXT[:2], continuations)


def test_documents_begin_with_the_same_token_and_have_the_same_perplexity(both: Both) -> None:
    """Qwen2's tokenizer has no BOS: llama.cpp would take token 11 for it."""
    assert both.ours.start_token == both.reference.start_token
    documents = [{"text": text} for text in TEXT[:3]]
    ours, theirs = (score_documents(model, documents, 256) for model in both)
    for one, other in zip(ours, theirs, strict=True):
        assert one["tokens"] == other["tokens"] and one["nats"] == pytest.approx(other["nats"], rel=0.001)


def test_a_chat_template_knows_only_the_special_tokens_that_there_are(tmp_path) -> None:
    loaded = ARCHITECTURES["qwen2"](False)
    loaded.tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
    write_gguf(loaded, tmp_path / "m.gguf", "f16")
    ours = LlamaCppModel(tmp_path / "m.gguf", threads=1)
    reference = TransformersModel(loaded.model, loaded.tokenizer)
    assert ours.render_chat("Open?") == reference.render_chat("Open?") == "Open?<|endoftext|>"


def test_perplexity_is_within_half_a_per_cent(both: Both) -> None:
    ours, theirs = perplexities(*both)
    assert ours == pytest.approx(theirs, rel=0.005)


def test_log_likelihoods_of_one_token_and_of_several_agree(both: Both) -> None:
    choices = both.ours.encode_choices(TEXT[:3], (" yes", " no", " one more: it is long"))
    ours, theirs = (dict(model.log_likelihoods(choices)) for model in both)
    for at in range(len(choices)):
        assert ours[at] == pytest.approx(theirs[at], abs=0.02 * len(choices[at].continuations[2]))


def test_greedy_tokens_agree(both: Both) -> None:
    assert greedy_tokens_alike(*both, NEW_TOKENS) >= ALIKE


def test_a_chat_template_shows_a_question_as_the_reference_does(both: Both) -> None:
    if both.reference.tokenizer.chat_template is None:
        pytest.skip("this tokenizer has no chat template")
    assert both.ours.render_chat("Is the school open?") == both.reference.render_chat("Is the school open?")
