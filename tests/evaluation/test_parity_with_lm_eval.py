"""Our prompts, tokens and scores beside lm-evaluation-harness's own, where it is installed."""

from __future__ import annotations

import math

import pytest

from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.tasks.boolq import boolq_items, boolq_prompt
from edgequant.evaluation.tasks.perplexity import rolling_windows, wikitext_perplexity
from edgequant.evaluation.tasks.wikitext import detokenize

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed")
PAGE = " = Title = \n\n The bridge ( built in 1 @,@ 905 ) was closed , he said . \n" + " The river rose . \n" * 30


@pytest.fixture
def harness(small_model, byte_tokenizer):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=small_model("llama"), tokenizer=byte_tokenizer, batch_size=2, max_length=64)


def _request(kind, arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_log_likelihoods_of_both_answers_agree(harness, small_model, byte_tokenizer, questions):
    short = [{**row, "passage": row["passage"][:20], "question": row["question"][:8]} for row in questions]
    ours = boolq_items(TransformersModel(small_model("llama"), byte_tokenizer), short)
    for name, answer in (("log_likelihood_no", " no"), ("log_likelihood_yes", " yes")):
        requests = [_request("loglikelihood", (boolq_prompt(row), answer)) for row in short]
        theirs = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]
        assert [item[name] for item in ours] == pytest.approx(theirs, abs=1e-4)


def test_rolling_windows_are_theirs():
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for length in (1, 63, 64, 65, 128, 200):
        theirs = [
            tuple(context + predicted)
            for context, predicted in map(
                make_disjoint_window, get_rolling_token_windows(list(range(length)), -1, 64, 1)
            )
        ]
        assert [window.tokens for window in rolling_windows(range(length), 64, -1)] == theirs


def test_detokenized_text_is_theirs():
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    assert detokenize(PAGE) == wikitext_detokenizer({"page": PAGE})


def test_word_perplexity_is_theirs(harness, small_model, byte_tokenizer):
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    request = _request("loglikelihood_rolling", (wikitext_detokenizer({"page": PAGE}),))
    (score,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    nats, words = process_results({"page": PAGE}, (score,))["word_perplexity"]
    scored = wikitext_perplexity(
        TransformersModel(small_model("llama"), byte_tokenizer), [PAGE], window=64, protocol="documents"
    )
    total = scored.columns("nats", "words").sum(axis=0)
    assert len(scored.rows) == 1
    assert math.exp(total[0] / total[1]) == pytest.approx(math.exp(-nats / words), rel=1e-5)
