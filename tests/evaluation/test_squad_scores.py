"""SQuAD's official normalisation and figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgequant.errors import UserError
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.tasks import squad
from edgequant.evaluation.tasks.evaluate_metrics import Squad, YesNo
from edgequant.evaluation.tasks.squad_scoring import exact_match, normalize, score_predictions, token_f1


def _rows(data_dir):
    data = json.loads((data_dir / "squad" / "dev-v1.1.json").read_text())["data"]
    return [
        {"id": question["id"], "answers": {"text": [answer["text"] for answer in question["answers"]]}}
        for article in data
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


@pytest.mark.parametrize(
    ("file", "em", "f1"), [("logistic-regression-baseline", 40.142, 50.982), ("bert-ensemble", 86.206, 92.196)]
)
def test_official_prediction_files_score_their_official_figures(data_dir, file, em, f1):
    predictions = squad.read_predictions(data_dir / "squad" / "predictions" / f"{file}.json")
    metrics = squad.squad_metrics("squad/", score_predictions(_rows(data_dir), predictions), Bootstrap(50))
    assert metrics["squad/exact_match"] == pytest.approx(em, abs=5e-4)
    assert metrics["squad/f1"] == pytest.approx(f1, abs=5e-4)
    assert metrics["squad/items"] == 10_570
    assert metrics["squad/unanswered"] == (13 if file.startswith("logistic") else 0)


def test_normalization_drops_case_punctuation_articles_and_spaces():
    assert normalize("The  Panthers', a team!") == "panthers team"
    assert normalize("theatre") == "theatre"


def test_the_best_reference_counts():
    assert exact_match("the Panthers", ["Denver", "Panthers"]) == 1
    # 1 shared word of 2 predicted and 3 in the reference: 2 * 1/2 * 1/3 / (1/2 + 1/3)
    assert token_f1("Carolina Panthers", ["x", "Carolina blue jersey"]) == pytest.approx(0.4)
    assert token_f1("", ["x"]) == 0


def test_the_metric_needs_no_network_and_agrees_with_the_definition(monkeypatch):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    predictions = [{"id": "1", "prediction_text": "1976"}, {"id": "2", "prediction_text": "Carolina Panthers"}]
    references = [
        {"id": "1", "answers": {"text": ["1976", "in 1976"], "answer_start": [97, 94]}},
        {"id": "2", "answers": {"text": ["Carolina blue jersey"], "answer_start": [1]}},
    ]
    assert Squad().compute(predictions=predictions, references=references) == pytest.approx(
        {"exact_match": 50.0, "f1": 70.0}
    )


def test_yes_no_metric_agrees_with_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    random = np.random.default_rng(0)
    gold, guessed = random.random(200) < 0.7, random.random(200) < 0.6
    scores = YesNo().compute(predictions=guessed.tolist(), references=gold.tolist())
    assert scores["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(gold, guessed))
    assert scores["accuracy"] == pytest.approx(100 * (gold == guessed).mean())


def test_answers_written_as_a_prediction_file_come_back(tmp_path):
    items = [{"id": "1", "prediction": "näher", "answered": True}, {"id": "2", "prediction": "", "answered": False}]
    (tmp_path / "p.json").write_text(squad.predictions_of(items))
    assert squad.read_predictions(tmp_path / "p.json") == {"1": "näher"}


@pytest.mark.parametrize("content", ["[1]", "{", '{"id": 3}'])
def test_a_malformed_prediction_file_is_named(tmp_path, content):
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(UserError, match=r"broken\.json"):
        squad.read_predictions(tmp_path / "broken.json")


def test_the_one_shot_example_is_never_about_the_same_paragraph(small_model, byte_tokenizer, questions):
    examples = squad.one_shot_examples(questions, seed=0)
    assert examples[0]["context"] != examples[1]["context"]
    for row in questions:
        prompt = squad._shot(row, examples, squad.squad_prompt) + squad.squad_prompt(row)
        contexts = [part.split("\n\n")[0] for part in prompt.split("Background: ")[1:]]
        assert contexts[1] == row["context"] and contexts[0] != row["context"]
    with pytest.raises(UserError, match="two paragraphs"):
        squad.one_shot_examples(questions[:3], seed=0)
