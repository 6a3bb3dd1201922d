"""BoolQ (Clark et al. 2019): yes or no, whichever continuation is likelier; both from one forward pass."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.clusters import cluster_of, named_cluster
from edgequant.evaluation.statistics.sampling import draw_questions
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Paired, Rows, Task
from edgequant.progress import progress

if TYPE_CHECKING:
    import numpy as np

    from edgequant.evaluation.statistics.intervals import Bootstrap


def boolq_prompt(row: dict) -> str:
    """The prompt of lm-evaluation-harness's `boolq` task; the answers are ' no' and ' yes'."""
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"


def boolq_chat_question(row: dict) -> str:
    """The same question for a chat template."""
    return f"{row['passage']}\n\nQuestion: {row['question']}?\nAnswer with one word, yes or no."


def boolq_items(model: LanguageModel, rows: Sequence[dict], *, chat: bool = False) -> list[dict]:
    """Log-likelihood in nats of both answers to every question.

    A question longer than the model's context is not cut: it counts as wrong, `over_long` is set, and its
    log-likelihoods are NaN.

    Args:
        rows: `question`, `passage`, `answer` (bool) and, where there are, `id` and the document, `source`.

    Returns:
        One row per question: `id`, `cluster` (its document, else its passage), `question`, `gold`, `predicted`,
        `log_likelihood_no`, `log_likelihood_yes`, `margin` (gold minus other, nats), `correct`, `tokens`, `over_long`.

    Raises:
        UserError: no questions, an answer that is no bool, or NaN logits.
    """
    if not rows:
        raise UserError("there are no yes-or-no questions to score; give at least one row")
    for at, row in enumerate(rows):
        if type(row["answer"]).__name__ not in ("bool", "bool_"):  # a text such as "false" would count as yes
            name = row.get("id", f"boolq-{at}")
            raise UserError(f"answer of question {name} must be True or False, got {row['answer']!r}; convert it")
    prompts = [model.render_chat(boolq_chat_question(row)) if chat else boolq_prompt(row) for row in rows]
    choices = model.encode_choices(prompts, ("no", "yes") if chat else (" no", " yes"))
    fitting = [index for index, choice in enumerate(choices) if choice.longest <= model.context_length]
    results = model.log_likelihoods([choices[index] for index in fitting])
    scored = dict(progress(results, len(fitting), "yes or no"))
    by_row = {fitting[at]: scores for at, scores in scored.items()}
    nan = (float("nan"), float("nan"))
    return [_item(at, row, choices[at].longest, by_row.get(at, nan)) for at, row in enumerate(rows)]


def boolq_metrics(prefix: str, items: Sequence[dict], bootstrap: Bootstrap) -> dict[str, float]:
    """Accuracy and balanced accuracy in per cent and the mean log-odds margin in nats, with bounds; confusion counts.

    Balanced accuracy is the mean of the recall of yes and of no: always answering yes scores 50, whatever the mix. The
    balanced margin is the mean of the margins where yes and where no is right: leaning towards one of them is worth
    nothing. Both are left out where all questions have one answer. `majority` is what always giving the commoner answer
    scores.
    """
    import numpy as np

    gold = np.array([item["gold"] for item in items], dtype=bool)
    correct = np.array([item["correct"] for item in items], dtype=float)
    clusters = [cluster_of({"id": at} | item) for at, item in enumerate(items)]
    true_yes, yes, true_no, no = (correct[gold].sum(), gold.sum(), correct[~gold].sum(), (~gold).sum())
    metrics = bootstrap.share(f"{prefix}accuracy", 100 * correct, clusters)
    metrics |= {f"{prefix}majority": 100 * max(yes, no) / len(items)}
    metrics |= _balanced(f"{prefix}balanced_accuracy", correct, gold, clusters, confidence=bootstrap.confidence)
    metrics |= _margins(prefix, items, clusters, bootstrap)
    metrics |= {f"{prefix}true_yes": true_yes, f"{prefix}false_no": yes - true_yes}
    metrics |= {f"{prefix}true_no": true_no, f"{prefix}false_yes": no - true_no}
    metrics |= {f"{prefix}items": len(items), f"{prefix}clusters": len(set(clusters))}
    metrics |= {f"{prefix}over_long": sum(item["over_long"] for item in items)}
    return {name: float(value) for name, value in metrics.items()}


def _balanced(
    name: str, correct: np.ndarray, gold: np.ndarray, clusters: Sequence[Hashable], *, confidence: float
) -> dict[str, float]:
    from edgequant.evaluation.statistics.batch_means import effective_items
    from edgequant.evaluation.statistics.intervals import with_bounds
    from edgequant.evaluation.statistics.proportions import Share, mean_of_shares

    if gold.all() or not gold.any():
        return {}
    recalls = []
    for answer in (True, False):
        own = [cluster for cluster, is_yes in zip(clusters, gold, strict=True) if is_yes == answer]
        right = correct[gold == answer]
        recalls.append(Share(float(right.mean()), effective_items(right, own, confidence)))
    low, high = mean_of_shares(recalls, confidence)
    ends = (100 * low, 100 * high) if min(recall.items for recall in recalls) > 1 else None
    return with_bounds(name, 100 * sum(recall.mean for recall in recalls) / len(recalls), ends)


def _margins(
    prefix: str, items: Sequence[dict], clusters: Sequence[Hashable], bootstrap: Bootstrap
) -> dict[str, float]:
    """Of the questions that fitted the context: as they are, and with yes and no weighing the same."""
    import numpy as np

    from edgequant.evaluation.statistics.comparison import class_weights

    kept = [at for at, item in enumerate(items) if math.isfinite(item["margin"])]
    margins, own = np.array([items[at]["margin"] for at in kept], dtype=float), [clusters[at] for at in kept]
    metrics = bootstrap.mean(f"{prefix}log_odds_margin", margins, own)
    if len({items[at]["gold"] for at in kept}) == 2:
        weights = class_weights([items[at]["gold"] for at in kept])
        metrics |= bootstrap.mean(f"{prefix}balanced_log_odds_margin", weights * margins, own)
    return metrics


def _item(at: int, row: dict, tokens: int, scores: tuple[float, ...]) -> dict:
    no, yes = scores
    over_long = no != no
    margin = (yes - no) if row["answer"] else (no - yes)
    # lm-evaluation-harness takes the first of equal scores, and ' no' comes first.
    predicted = None if over_long else yes > no
    return {
        "id": str(row.get("id", f"boolq-{at}")),
        "cluster": named_cluster(row, "source", "passage"),
        "question": row["question"],
        "gold": bool(row["answer"]),
        "predicted": predicted,
        "log_likelihood_no": no,
        "log_likelihood_yes": yes,
        "margin": margin,
        "correct": float(predicted == bool(row["answer"])) if not over_long else 0.0,
        "tokens": tokens,
        "over_long": over_long,
    }


def score_yes_or_no(
    model: LanguageModel, rows: Rows, settings: ScoringSettings, *, name: str, prefix: str
) -> Evaluation:
    """Items under `name` and metrics under `prefix` of yes-or-no questions."""
    from edgequant.evaluation.statistics.intervals import Bootstrap

    items = boolq_items(model, rows, chat=settings.chat_template)
    return Evaluation.of_items(name, items, boolq_metrics(prefix, items, Bootstrap.of(settings)))


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    rows = draw_questions(data["boolq"], "boolq", settings.limit, settings.seed)
    return score_yes_or_no(model, rows, settings, name="boolq", prefix="boolq/")


def _texts(rows: Rows) -> list[str]:
    """Passages and questions."""
    return list(dict.fromkeys(row[column] for column in ("passage", "question") for row in rows))


def yes_or_no_paired(table: str, prefix: str, nouns: tuple[str, str]) -> tuple[Paired, ...]:
    """How two models are compared on yes-or-no questions: by accuracy, and where that is at chance by the margin."""
    accuracy = Paired(metric=f"{prefix}accuracy", table=table, value="correct", gold="gold", nouns=nouns)
    margin = Paired(
        metric=f"{prefix}balanced_log_odds_margin", table=table, value="margin", unit="nats", gold="gold",
        instead_of=accuracy.metric, nouns=nouns,
    )  # fmt: skip
    return accuracy, margin


_COUNTS = {"boolq/items": "questions", "boolq/clusters": "passages"}

BOOLQ = Task(
    name="boolq",
    score=_score,
    data=(DataSet(name="boolq", report="validation", select=("train", "validation"), texts=_texts),),
    protocol="BoolQ validation: the likelier of ' yes' and ' no' after passage and question, as lm-evaluation-harness "
    "does. Always answering yes scores 62.17 %.",
    display={
        "boolq/accuracy": Metric("BoolQ accuracy", "%", "higher", floor="boolq/majority", counts=_COUNTS),
        "boolq/balanced_log_odds_margin": Metric(
            "BoolQ log-odds margin", "nats", "higher", prominence="summary", counts=_COUNTS
        ),
        "boolq/balanced_accuracy": Metric(
            "BoolQ balanced accuracy", "%", "higher", prominence="table", floor=50.0, counts=_COUNTS
        ),
    },
    paired=yes_or_no_paired("boolq", "boolq/", ("questions", "passages")),
)
