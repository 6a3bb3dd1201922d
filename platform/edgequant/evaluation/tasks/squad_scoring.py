"""Scoring of extracted answers exactly as the official SQuAD v1.1 script does (Rajpurkar et al. 2016, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from edgequant.evaluation.statistics.clusters import named_cluster

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(answer: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the normalised prediction equals one of the normalised references, else 0.0."""
    return float(normalize(prediction) in {normalize(reference) for reference in references})


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall against the reference that suits the prediction best, 0 to 1."""
    return max(
        (_f1(normalize(prediction).split(), normalize(reference).split()) for reference in references), default=0.0
    )


def score_predictions(rows: Sequence[dict], predictions: Mapping[str, str]) -> list[dict]:
    """Score a prediction file (question id -> answer) against SQuAD rows.

    A question without a prediction scores 0, as in the official script; predictions for unknown ids are ignored.

    Returns:
        One row per question: `id`, `cluster`, `prediction`, `exact_match`, `f1`, `answered`.
    """
    return [_scored(row, predictions.get(row["id"])) for row in rows]


def _scored(row: dict, prediction: str | None) -> dict:
    references = row["answers"]["text"]
    return {
        "id": row["id"],
        "cluster": named_cluster(row, "source", "title", "context"),
        "prediction": prediction or "",
        "exact_match": 0.0 if prediction is None else exact_match(prediction, references),
        "f1": 0.0 if prediction is None else token_f1(prediction, references),
        "answered": prediction is not None,
    }


def _f1(prediction: list[str], reference: list[str]) -> float:
    shared = sum((Counter(prediction) & Counter(reference)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)
