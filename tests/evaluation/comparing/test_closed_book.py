"""Questions without a text: the likelihood of what is right, by an own computation, and greedy answers."""

from __future__ import annotations

import math

import pytest
import torch

from edgequant.errors import UserError
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.harm import losses
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.suite import evaluate_model
from edgequant.evaluation.tasks.closed_book import closed_book_items
from edgequant.evaluation.tasks.registry import find_task

ROWS = [
    {"id": "cb-1", "document": "wash-01.md", "language": "en", "question": "How much water does a person need a day?",
     "answers": ["15 litres", "fifteen litres"]},
    {"id": "cb-2", "document": "wash-01.md", "language": "en", "question": "How many people share one tap?",
     "answers": ["250"]},
    {"id": "cb-3", "document": "food-02.md", "language": "en", "question": "How many kilocalories are a full ration?",
     "answers": ["2,100", "2100", "2,100 kilocalories"]},
    {"id": "cb-4", "document": "shelter-03.md", "language": "si", "question": "එක් පුද්ගලයකුට වර්ග මීටර කීයක් ද?",
     "answers": ["3.5", "වර්ග මීටර 3.5"]},
    {"id": "cb-5", "document": "health-04.md", "language": "ta", "question": "ஒரு நாளைக்கு?", "answers": ["மூன்று"]},
]  # fmt: skip
SETTINGS = EvaluationSettings(tasks=("closed_book",), max_new_tokens=4, bootstrap_resamples=200)


@pytest.fixture(scope="module")
def model(_tiny):
    return TransformersModel(_tiny.model, _tiny.tokenizer)


@pytest.fixture(scope="module")
def measured(_tiny):
    return evaluate_model(_tiny.model, _tiny.tokenizer, {"closed_book": ROWS}, SETTINGS)


def log_likelihood(loaded, question: str, answer: str) -> float:
    """Of the answer's tokens behind the question's, one after the other."""
    begun = loaded.tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    whole = loaded.tokenizer(f"Question: {question}\nAnswer: {answer}")["input_ids"]
    assert whole[: len(begun)] == begun
    with torch.no_grad():
        logits = loaded.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logits[at - 1, whole[at]]) for at in range(len(begun), len(whole)))


def test_the_likeliest_acceptable_answer_counts(_tiny, measured):
    for row, item in zip(ROWS, measured.items["closed_book"], strict=True):
        scores = [log_likelihood(_tiny, row["question"], answer) for answer in row["answers"]]
        assert item["log_likelihood"] == pytest.approx(max(scores), rel=1e-4)
        assert item["answer_tokens"] > 0 and (item["id"], item["language"]) == (row["id"], row["language"])
    mean = sum(item["log_likelihood"] for item in measured.items["closed_book"]) / len(ROWS)
    assert measured.metrics["closed_book/log_likelihood"] == pytest.approx(mean)
    assert measured.metrics["closed_book/items"] == 5 and measured.metrics["closed_book/clusters"] == 4


def test_answers_are_decoded_without_a_text_and_scored_as_squads(model, monkeypatch):
    from edgequant.evaluation.backends.language_model import Generated

    said = ["15 litres, at least", "250", "nothing", "3.5", "நான்கு"]
    seen = []

    def generate(prompts, new_tokens):
        seen.extend(model.decode(prompt) for prompt in prompts)
        return ((at, Generated(said[at], 3)) for at in range(len(prompts)))

    monkeypatch.setattr(model, "generate", generate)
    items = closed_book_items(model, ROWS)
    assert seen[1] == "Question: How many people share one tap?\nAnswer:"
    assert [item["exact_match"] for item in items] == [0, 1, 0, 1, 0]
    # 2 of 4 words said, both of 2 wanted: 2 * 1/2 * 1 / (3/2)
    assert [item["f1"] for item in items] == pytest.approx([2 / 3, 1, 0, 1, 0])


def test_two_models_are_compared_by_documents_without_a_floor_for_what_is_known(measured):
    known = measured.items
    more = {"closed_book": [{**row, "log_likelihood": row["log_likelihood"] + 1} for row in known["closed_book"]]}
    more["closed_book"][0]["log_likelihood"] += 0.5
    found = {loss.metric: loss for loss in losses(known, more, perplexity_margin=0.0, task_margin=0.0)}
    gained = found["closed_book/log_likelihood"]
    assert gained.outcome == "better" and gained.unit == "nats" and gained.loss == pytest.approx(-1.1)
    assert gained.counted == "5 questions of 4 documents" and gained.decides
    assert found["closed_book/f1"].outcome == "at the floor"


def test_a_question_beyond_the_context_counts_as_wrong_and_is_told(_tiny):
    long = {**ROWS[1], "id": "long", "question": 4000 * "why "}
    found = evaluate_model(_tiny.model, _tiny.tokenizer, {"closed_book": [*ROWS, long]}, SETTINGS)
    assert math.isnan(found.items["closed_book"][-1]["log_likelihood"]) and found.metrics["closed_book/over_long"] == 1
    assert math.isfinite(found.metrics["closed_book/log_likelihood"])
    assert any("closed_book: 1 of 6 are longer" in note for note in found.notes)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "the data set is empty"),
        ([ROWS[0], ROWS[0]], "'cb-1' twice"),
        ([{**ROWS[0], "answers": []}], "one or more texts"),
        ([{**ROWS[0], "answers": "250"}], "one or more texts, got '250'"),
        ([{**ROWS[0], "answers": ["250", " "]}], "one or more texts"),
        ([{**ROWS[0], "question": None}], "must be text, got None"),
    ],
)
def test_questions_that_cannot_be_scored_are_refused(_tiny, rows, said):
    with pytest.raises(UserError, match=said):
        evaluate_model(_tiny.model, _tiny.tokenizer, {"closed_book": rows}, SETTINGS)


def test_its_questions_may_not_be_trained_on_but_its_documents_may():
    (data_set,) = find_task("closed_book").data
    assert data_set.texts(ROWS) == [row["question"] for row in ROWS]
