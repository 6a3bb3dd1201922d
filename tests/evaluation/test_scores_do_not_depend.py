"""Scores are a property of model and question: not of batch size, padding, order, shared prefixes or chunking."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from edgequant.evaluation.backends.language_model import Choice
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.tasks.boolq import boolq_items, boolq_prompt
from edgequant.evaluation.tasks.perplexity import wikitext_perplexity
from edgequant.evaluation.tasks.squad import squad_items, squad_prompt

ARCHITECTURES = ("qwen2", "llama", "phi", "gemma3")


def _plain_log_likelihood(model: Any, context: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    """One unpadded sequence, whole logits, one loop: what the definition says."""
    tokens = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        logs = model(tokens).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(context) + at - 1, token]) for at, token in enumerate(continuation))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("max_batch_tokens", [1, 700, 100_000])
def test_log_likelihoods_equal_an_unpadded_loop_at_every_batch_size(
    small_model, byte_tokenizer, questions, architecture, max_batch_tokens
):
    model = small_model(architecture)
    scorer = TransformersModel(model, byte_tokenizer, max_batch_tokens=max_batch_tokens)
    choices = scorer.encode_choices([boolq_prompt(row) for row in questions[:5]], (" no", " yes"))
    for index, scores in scorer.log_likelihoods(choices):
        choice = choices[index]
        expected = [_plain_log_likelihood(model, choice.context, part) for part in choice.continuations]
        assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_equal_generate_one_by_one_at_every_batch_size(
    small_model, byte_tokenizer, questions, architecture
):
    model = small_model(architecture)
    prompts = TransformersModel(model, byte_tokenizer).encode(
        [squad_prompt(row) + row["question"][:at] for at, row in enumerate(questions)]
    )
    stop = TransformersModel(model, byte_tokenizer)._stop.nonzero().flatten().tolist()
    expected = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=stop, pad_token_id=0
        )[0]
        expected.append(byte_tokenizer.decode(out[len(prompt) :], skip_special_tokens=True).split("\n")[0])
    assert len(set(expected)) > 1  # or the test would pass on constants
    for max_batch_tokens in (1, 2_000, 100_000):
        scorer = TransformersModel(model, byte_tokenizer, max_batch_tokens=max_batch_tokens)
        answers = dict(scorer.generate(prompts, 12))
        assert [answers[at].text for at in range(len(prompts))] == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_do_not_depend_on_the_order_of_items(small_model, byte_tokenizer, questions, architecture):
    scorer = TransformersModel(small_model(architecture), byte_tokenizer, max_batch_tokens=2_000)
    shuffled = random.Random(1).sample(questions, len(questions))
    for score, value in ((boolq_items, "predicted"), (squad_items, "prediction")):
        straight = {item["id"]: item[value] for item in score(scorer, questions)}
        assert {item["id"]: item[value] for item in score(scorer, shuffled)} == straight


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_perplexity_equals_a_plain_loop(small_model, byte_tokenizer, architecture):
    model, text = small_model(architecture), "Boats were kept at the school. " * 20
    scored = wikitext_perplexity(TransformersModel(model, byte_tokenizer, bos="never"), [text], window=64)
    ids = torch.tensor(byte_tokenizer(text)["input_ids"])
    total = 0.0
    for start in range(0, len(ids) - 63, 64):
        window = ids[start : start + 64]
        with torch.no_grad():
            logs = model(window[None]).logits[0].double().log_softmax(-1)
        total += -float(logs[:-1].gather(1, window[1:, None]).sum())
    assert sum(row["nats"] for row in scored.rows) == pytest.approx(total, rel=1e-5)
    assert sum(row["tokens"] for row in scored.rows) == 63 * len(scored.rows)


def test_a_model_that_cannot_be_taken_apart_scores_the_same(small_model, byte_tokenizer, questions):
    whole = TransformersModel(small_model("qwen2"), byte_tokenizer)
    whole._head._agrees = False  # as for an architecture whose head is more than a matrix
    parts = TransformersModel(small_model("qwen2"), byte_tokenizer)
    choices = parts.encode_choices([boolq_prompt(questions[0])], (" no", " yes"))
    assert dict(whole.log_likelihoods(choices))[0] == pytest.approx(dict(parts.log_likelihoods(choices))[0], rel=1e-5)
    prompts = parts.encode([squad_prompt(row) for row in questions[:3]])
    assert dict(whole.generate(prompts, 8)) == dict(parts.generate(prompts, 8))


def test_no_logits_are_made_for_every_position_of_a_window(small_model, byte_tokenizer, monkeypatch):
    from edgequant.evaluation.backends import token_losses

    scorer = TransformersModel(small_model("llama"), byte_tokenizer)
    monkeypatch.setattr(token_losses, "_rows_at_once", lambda device, vocabulary: 10)
    rows = []
    original = token_losses.LMHead.logits
    monkeypatch.setattr(
        token_losses.LMHead, "logits", lambda self, hidden: rows.append(len(hidden)) or original(self, hidden)
    )
    wikitext_perplexity(scorer, ["x" * 512], window=256)
    assert max(rows) == 10


def test_continuations_that_share_all_but_their_last_token_are_one_forward_row(small_model, byte_tokenizer):
    scorer = TransformersModel(small_model("llama"), byte_tokenizer)
    seen = []
    original = scorer._head.hidden
    scorer._head.hidden = lambda ids, **kwargs: seen.append(tuple(ids.shape)) or original(ids, **kwargs)
    list(scorer.log_likelihoods([Choice((5, 6, 7), ((8,), (9,))), Choice((5, 6, 4), ((8,), (9,)))]))
    assert seen == [(2, 3)]


@pytest.mark.gpu
def test_predictions_are_the_same_on_cpu_and_gpu(small_model, byte_tokenizer, questions):
    import copy

    model = small_model("llama")
    on_cpu = boolq_items(TransformersModel(model, byte_tokenizer), questions)
    on_gpu = boolq_items(TransformersModel(copy.deepcopy(model).cuda(), byte_tokenizer), questions)
    assert [item["predicted"] for item in on_cpu] == [item["predicted"] for item in on_gpu]
