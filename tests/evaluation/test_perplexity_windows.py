"""Which tokens are scored, and given what: every protocol."""

from __future__ import annotations

import math

import pytest

from edgequant.errors import UserError
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.tasks.domain_perplexity import document_perplexity, domain_metrics
from edgequant.evaluation.tasks.perplexity import (
    perplexity_metrics,
    rolling_windows,
    wikitext_perplexity,
    windows_of,
)
from edgequant.evaluation.tasks.wikitext import detokenize, join_rows, wikitext_pages


def _scored_positions(windows, tokens):
    """Positions in the text that each window scores; tokens are their own positions."""
    return [position for window in windows for position in window.tokens[len(window.tokens) - window.scored :]]


def test_side_by_side_windows_are_floor_n_over_window_and_score_all_but_their_first():
    windows = windows_of(range(1000), 64)
    assert len(windows) == 1000 // 64
    assert _scored_positions(windows, 1000) == [p for p in range(15 * 64) if p % 64]


@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("bos", [None, -1])
def test_overlapping_windows_score_every_token_once_with_at_least_window_minus_stride_context(stride, bos):
    windows = windows_of(range(50), 10, stride=stride, bos=bos)
    assert _scored_positions(windows, 50) == list(range(0 if bos is not None else 1, 50))
    for window in windows[1:-1]:
        assert len(window.tokens) - window.scored >= 10 - stride


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 30])
def test_rolling_windows_score_every_token_once_and_never_read_more_than_the_window(length):
    windows = rolling_windows(range(length), 8, start_token=-1)
    assert _scored_positions(windows, length) == list(range(length))
    assert all(len(window.tokens) - 1 <= 8 for window in windows)
    assert windows[0].tokens[0] == -1


def test_rows_of_the_hub_give_back_the_file_and_the_gptq_join():
    rows = ["", " = A = \n", "", " text \n"]
    assert join_rows(rows, "raw") == " \n = A = \n \n text \n"
    assert join_rows(rows, "paragraphs") == "" + "\n\n" + " = A = \n" + "\n\n" + "" + "\n\n" + " text \n"


def test_the_test_split_has_its_published_words_and_sixty_pages(data_dir):
    text = (data_dir / "wikitext-2" / "wiki.test.raw").read_text(encoding="utf-8")
    rows = [line + "\n" if line.strip() else "" for line in text.split("\n")[:-1]]
    assert join_rows(rows, "raw") == text
    assert len(text.split()) == 241_211
    assert "\n".join(wikitext_pages(text)).split() == text.split()


def test_spaced_punctuation_is_undone():
    assert detokenize("the 1 @,@ 000 @-@ metre run ( 2 @.@ 5 km ) , he said") == "the 1,000-metre run (2.5 km), he said"


def test_perplexity_is_exp_of_nats_per_token_and_bits_per_byte_is_over_bytes(small_model, byte_tokenizer):
    scored = wikitext_perplexity(TransformersModel(small_model("llama"), byte_tokenizer), ["ab" * 100], window=50)
    metrics = perplexity_metrics("wikitext2", scored, Bootstrap(100))
    nats = sum(row["nats"] for row in scored.rows)
    assert metrics["wikitext2/perplexity"] == pytest.approx(math.exp(nats / (4 * 49)))
    # one byte per token in this tokenizer
    assert metrics["wikitext2/bits_per_byte"] == pytest.approx(nats / (4 * 49) / math.log(2))


def test_domains_are_reported_apart_and_together(small_model, byte_tokenizer):
    scorer = TransformersModel(small_model("llama"), byte_tokenizer)
    documents = [("Food & Nutrition", "rice " * 9), ("Shelter", "tents " * 9), ("Shelter", "roof " * 300)]
    metrics = domain_metrics(document_perplexity(scorer, documents), Bootstrap(50))
    assert metrics["domain/tokens"] == sum(len(text) for _, text in documents)
    assert {"domain/perplexity_food_nutrition", "domain/perplexity_shelter", "domain/perplexity_ci_low"} <= set(metrics)


def test_too_little_text_and_a_window_beyond_the_context_say_what_to_do(small_model, byte_tokenizer):
    scorer = TransformersModel(small_model("llama"), byte_tokenizer)
    with pytest.raises(UserError, match="fewer than one window of 1,024"):
        wikitext_perplexity(scorer, ["short"])
    with pytest.raises(UserError, match="window must be at most the model's context of 1024 tokens, got 4096"):
        wikitext_perplexity(scorer, ["x" * 9000], window=4096)
    with pytest.raises(UserError, match="no documents"):
        document_perplexity(scorer, [])
