"""Two models are compared on the items that both were measured on, and only where both were measured alike."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgequant.evaluation.evidence_file import Conditions, Scores
from edgequant.evaluation.pairing import Pairing
from edgequant.evaluation.settings import EvaluationSettings

DATA = {"wikitext2": ["a", "b"], "boolq": [{"question": "q"}], "domain": [("water", "text")]}


def conditions(data=DATA, **settings) -> Conditions:
    asked = EvaluationSettings(tasks=("perplexity", "boolq", "latency"), **settings)
    return Conditions.of(asked, data, data_dir=None, device="cpu", dtype="float32")


def windows(*nats: float) -> list[dict]:
    return [{"id": f"window-{at}", "nats": each, "tokens": 10, "block": at} for at, each in enumerate(nats)]


def answers(*right: int) -> list[dict]:
    return [{"id": f"boolq-{at}", "correct": float(each)} for at, each in enumerate(right)]


def scores(table: str, rows: list[dict]) -> Scores:
    return Scores({}, {table: rows})


def test_a_perplexity_is_paired_window_by_window():
    before, after = windows(20.0, 30.0, 40.0), windows(20.2, 30.1, 40.3)
    found = Pairing(scores("wikitext2", before), scores("wikitext2", after), conditions(), conditions()).difference(
        "wikitext2/perplexity"
    )
    reference, now = math.exp(90 / 30), math.exp(90.6 / 30)
    assert found.reference == pytest.approx(reference) and found.items == 3
    assert found.difference == pytest.approx(now - reference)
    assert found.low < found.difference < found.high < 1  # by their own intervals it would reach beyond 20


def test_answers_are_paired_question_by_question():
    before, after = answers(*([1] * 60 + [0] * 40)), answers(*([1] * 57 + [0] * 43))
    pairing = Pairing(scores("boolq", before), scores("boolq", after), conditions(), conditions())
    found = pairing.difference("boolq/accuracy")
    assert (found.reference, found.difference, found.items) == (60.0, pytest.approx(-3.0), 100)
    assert -10 < found.low < -3 < found.high < 1.5  # by the two intervals alone it would reach from -17 to 11
    assert "paired on 100 questions of 100 passages: -3" in found.words


def test_only_shared_items_count_where_limits_differ():
    before, after = answers(1, 1, 1, 0), answers(1, 0)
    pairing = Pairing(scores("boolq", before), scores("boolq", after), conditions(limit=40), conditions(limit=20))
    found = pairing.difference("boolq/accuracy")
    assert (found.items, found.reference, found.difference) == (2, 100.0, -50.0)


def test_windows_that_another_tokeniser_cut_are_others():
    after = [row | {"tokens": 9} for row in windows(20.0, 30.0)]
    pairing = Pairing(scores("wikitext2", windows(20.0, 30.0)), scores("wikitext2", after), conditions(), conditions())
    assert "no item of wikitext2 was scored alike" in pairing.why_not("wikitext2/perplexity")
    assert pairing.difference("wikitext2/perplexity") is None


@pytest.mark.parametrize(
    ("theirs", "metric", "why"),
    [
        ({"wikitext_protocol": "documents"}, "wikitext2/perplexity", "wikitext_protocol documents, this with raw"),
        ({"window": 512}, "wikitext2/perplexity", "window 512, this with none"),
        ({"chat_template": True}, "boolq/balanced_accuracy", "chat_template true, this with false"),
        ({"data": DATA | {"boolq": []}}, "boolq/accuracy", "data set boolq is another one"),
        ({"latency_new_tokens": 8}, "latency/decode_ms_per_token", "latency_new_tokens 8, this with none"),
        ({"latency_new_tokens": 8}, "boolq/accuracy", ""),
        ({"confidence": 0.9, "limit": 7}, "boolq/accuracy", ""),
        ({"chat_template": True}, "size/checkpoint_gb", ""),
    ],
)
def test_what_was_measured_in_two_ways_is_not_compared_and_that_is_said(theirs, metric, why):
    pairing = Pairing(Scores({}), Scores({}), conditions(**theirs), conditions())
    assert (why in pairing.why_not(metric)) if why else pairing.why_not(metric) == ""


def test_times_of_two_machines_are_not_compared():
    elsewhere = replace(conditions(), machine="another one")
    pairing = Pairing(Scores({}), Scores({}), elsewhere, conditions())
    assert "machine another one" in pairing.why_not("latency/decode_ms_per_token")
    assert pairing.why_not("boolq/accuracy") == ""
