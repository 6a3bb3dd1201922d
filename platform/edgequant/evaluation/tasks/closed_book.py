"""Closed-book questions on the domain (Roberts et al. 2020): what a model knows, with no text to read it from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import Choice, LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.clusters import cluster_of, named_cluster
from edgequant.evaluation.statistics.sampling import draw_questions
from edgequant.evaluation.tasks.squad_scoring import score_predictions
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Paired, Rows, Task
from edgequant.progress import progress


def closed_book_prompt(row: Mapping[str, Any]) -> str:
    """The question alone."""
    return f"Question: {row['question']}\nAnswer:"


def closed_book_items(
    model: LanguageModel, rows: Sequence[dict], *, max_new_tokens: int = 32, chat: bool = False
) -> list[dict]:
    """The likelihood of the right answer, and a greedy answer, to every question.

    Of several acceptable answers the one that the model finds likeliest counts. A question that does not fit the
    context with its longest answer counts as wrong, `over_long` is set, and its likelihood is NaN.

    Args:
        rows: `id`, `question`, `answers` (texts that are right), and where there are, `document` and `language`.

    Returns:
        One row per question: `id`, `cluster` (its document), `language`, `question`, `log_likelihood` (nats),
        `answer_tokens`, `prediction`, `exact_match`, `f1` (0 to 1), `answered`, `tokens`, `over_long`.

    Raises:
        UserError: no questions, two of one id, one without an answer, or NaN logits.
    """
    _check(rows)
    prompts = [model.render_chat(str(row["question"])) if chat else closed_book_prompt(row) for row in rows]
    blank = "" if chat else " "
    choices = [
        model.encode_choices([prompt], [f"{blank}{answer}" for answer in row["answers"]])[0]
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    contexts = model.encode(prompts)
    fitting = [
        at
        for at, (choice, context) in enumerate(zip(choices, contexts, strict=True))
        if max(choice.longest, len(context) + max_new_tokens) <= model.context_length
    ]
    scored = model.log_likelihoods([choices[at] for at in fitting])
    likelihoods = {fitting[at]: scores for at, scores in progress(scored, len(fitting), "known answers")}
    written = model.generate([contexts[at] for at in fitting], max_new_tokens)
    texts = {fitting[at]: answer.text.strip() for at, answer in progress(written, len(fitting), "answers")}
    named = [{"id": row["id"], "answers": {"text": list(row["answers"])}} for row in rows]
    found = score_predictions(named, {rows[at]["id"]: text for at, text in texts.items()})
    return [
        item
        | {"cluster": named_cluster(row, "document"), "language": row.get("language", ""), "question": row["question"]}
        | {"tokens": len(contexts[at]), "over_long": at not in texts}
        | _likeliest(choices[at], likelihoods.get(at))
        for at, (row, item) in enumerate(zip(rows, found, strict=True))
    ]


def _likeliest(choice: Choice, scores: Sequence[float] | None) -> dict[str, float]:
    if scores is None:
        return {"log_likelihood": math.nan, "answer_tokens": 0}
    best = max(range(len(scores)), key=lambda at: scores[at])
    return {"log_likelihood": scores[best], "answer_tokens": len(choice.continuations[best])}


def _check(rows: Sequence[dict]) -> None:
    if not rows:
        raise UserError("there are no closed-book questions to score; give at least one row")
    seen: set[str] = set()
    for row in rows:
        name, answers = row.get("id"), row.get("answers")
        if name in seen:
            raise UserError(f"id of a question must be its own, got {name!r} twice; number them anew")
        seen.add(str(name))
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise UserError(f"question of {name!r} must be text, got {row.get('question')!r}; leave it out")
        texts = answers if isinstance(answers, list | tuple) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"answers of question {name!r} must be one or more texts, got {answers!r}; leave it out")


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    from edgequant.evaluation.statistics.intervals import Bootstrap

    rows = draw_questions(data["closed_book"], "closed_book", settings.limit, settings.seed)
    items = closed_book_items(model, rows, max_new_tokens=settings.max_new_tokens, chat=settings.chat_template)
    bootstrap, clusters = Bootstrap.of(settings), [cluster_of(item) for item in items]
    kept = [at for at, item in enumerate(items) if not item["over_long"]]
    metrics = bootstrap.mean(
        "closed_book/log_likelihood", [items[at]["log_likelihood"] for at in kept], [clusters[at] for at in kept]
    )
    for name in ("exact_match", "f1"):
        metrics |= bootstrap.share(f"closed_book/{name}", [100 * item[name] for item in items], clusters)
    counts = {"items": len(items), "clusters": len(set(clusters)), "over_long": len(items) - len(kept)}
    metrics |= {f"closed_book/{name}": float(count) for name, count in counts.items()}
    return Evaluation.of_items("closed_book", items, metrics)


def _texts(rows: Rows) -> list[str]:
    """The questions; the documents that they come from may be trained on, or nothing could be known."""
    return list(dict.fromkeys(row["question"] for row in rows))


_NOUNS = ("questions", "documents")
_COUNTS = {"closed_book/items": "questions", "closed_book/clusters": "documents"}

CLOSED_BOOK = Task(
    name="closed_book",
    score=_score,
    data=(DataSet(name="closed_book", texts=_texts),),
    protocol="Questions on the domain without any text to read: the log-likelihood of the likeliest acceptable answer "
    "in nats, and greedy answers scored as SQuAD's.",
    display={
        "closed_book/log_likelihood": Metric(
            "closed-book log-likelihood", "nats", "higher", prominence="summary", counts=_COUNTS
        ),
        "closed_book/f1": Metric("closed-book F1", "%", "higher", prominence="summary", floor=0.0, counts=_COUNTS),
        "closed_book/exact_match": Metric(
            "closed-book exact match", "%", "higher", prominence="table", floor=0.0, counts=_COUNTS
        ),
    },
    by_default=False,
    paired=(
        Paired(
            metric="closed_book/log_likelihood", table="closed_book", value="log_likelihood", unit="nats", nouns=_NOUNS
        ),
        Paired(metric="closed_book/f1", table="closed_book", value="f1", chance=0.0, nouns=_NOUNS),
    ),
)
