"""The scores as `evaluate.Metric` subclasses that need no network, unlike `evaluate.load`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from edgequant.evaluation.tasks.squad_scoring import exact_match, token_f1

_SQUAD_CITATION = "Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250"
_BOOLQ_CITATION = "Clark et al. 2019, BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions, NAACL"


class Squad(evaluate.Metric):
    """Exact match and F1 of SQuAD v1.1 in per cent; takes and returns what `evaluate.load("squad")` does.

    Example:
        Squad().compute(
            predictions=[{"id": "1", "prediction_text": "1976"}],
            references=[{"id": "1", "answers": {"text": ["1976"], "answer_start": [97]}}],
        )  # {"exact_match": 100.0, "f1": 100.0}
    """

    def _info(self) -> evaluate.MetricInfo:
        answers = datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")})
        features = {
            "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
            "references": {"id": datasets.Value("string"), "answers": answers},
        }
        return evaluate.MetricInfo(
            description="Exact match and F1 with the official SQuAD v1.1 normalisation.",
            citation=_SQUAD_CITATION,
            inputs_description="predictions: id, prediction_text. references: id, answers {text, answer_start}.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list[dict], references: list[dict], **_: Any) -> dict[str, float]:
        answers = {row["id"]: row["prediction_text"] for row in predictions}
        scores = [_pair(answers.get(row["id"]), _texts(row["answers"])) for row in references]
        exact, f1 = np.mean(scores, axis=0) if scores else (0.0, 0.0)
        return {"exact_match": 100 * float(exact), "f1": 100 * float(f1)}


class YesNo(evaluate.Metric):
    """Accuracy and balanced accuracy of boolean predictions in per cent, as BoolQ is scored.

    Example:
        YesNo().compute(predictions=[True, True], references=[True, False])  # accuracy 50, balanced_accuracy 50
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, and the mean of the recalls of yes and of no.",
            citation=_BOOLQ_CITATION,
            inputs_description="predictions and references: booleans.",
            features=datasets.Features({"predictions": datasets.Value("bool"), "references": datasets.Value("bool")}),
        )

    def _compute(self, predictions: list[bool], references: list[bool], **_: Any) -> dict[str, float]:
        guessed, gold = np.asarray(predictions, dtype=bool), np.asarray(references, dtype=bool)
        right = guessed == gold
        recalls = [right[gold == value].mean() for value in (True, False) if (gold == value).any()]
        return {"accuracy": 100 * float(right.mean()), "balanced_accuracy": 100 * float(np.mean(recalls))}


def _pair(prediction: str | None, references: list[str]) -> tuple[float, float]:
    if prediction is None:  # unanswered scores 0, as in the official script
        return 0.0, 0.0
    return exact_match(prediction, references), token_f1(prediction, references)


def _texts(answers: Any) -> list[str]:
    # The features turn a mapping of lists into a list of mappings or leave it, by version.
    return list(answers["text"]) if isinstance(answers, dict) else [answer["text"] for answer in answers]
