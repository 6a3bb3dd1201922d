"""SQuAD v1.1 (Rajpurkar et al. 2016): greedy answers to the first line end, exact match and F1."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.clusters import cluster_of
from edgequant.evaluation.statistics.sampling import draw_questions
from edgequant.evaluation.tasks.squad_scoring import score_predictions
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Paired, Rows, Task
from edgequant.progress import progress

if TYPE_CHECKING:
    from edgequant.evaluation.statistics.intervals import Bootstrap


def squad_prompt(row: dict) -> str:
    """Title, context, question, answer: the template of lm-evaluation-harness's `squadv2` task."""
    title = row["title"].replace("_", " ")
    return f"Title: {title}\n\nBackground: {row['context']}\n\nQuestion: {row['question']}\n\nAnswer:"


def squad_chat_question(row: dict) -> str:
    """The same question for a chat template."""
    return f"{row['context']}\n\nQuestion: {row['question']}\nAnswer with the shortest span of the text, nothing else."


def squad_items(
    model: LanguageModel,
    rows: Sequence[dict],
    *,
    examples: Sequence[dict] = (),
    max_new_tokens: int = 32,
    chat: bool = False,
) -> list[dict]:
    """Greedy answers and their scores.

    A prompt that leaves no room for the answer in the model's context is not cut: it stays unanswered, scores 0, and
    `over_long` is set.

    Args:
        rows: `id`, `title`, `context`, `question`, `answers` {"text": [...]}.
        examples: from `one_shot_examples` for one worked example before each question, or empty for none.

    Returns:
        One row per question: `id`, `cluster` (its document, else its article), `question`, `prediction`, `exact_match`,
        `f1` (0 to 1), `answered`, `tokens`, `generated_tokens`, `over_long`.

    Raises:
        UserError: no questions, two of one id, one without an answer, or NaN logits.
    """
    if not rows:
        raise UserError("there are no questions to answer; give at least one row")
    _check_questions(rows)
    prompts = model.encode([_prompt(model, row, examples, chat) for row in rows])
    fitting = [at for at, prompt in enumerate(prompts) if len(prompt) + max_new_tokens <= model.context_length]
    results = model.generate([prompts[at] for at in fitting], max_new_tokens)
    answers = {fitting[at]: answer for at, answer in progress(results, len(fitting), "answers")}
    predictions = {rows[at]["id"]: answer.text.strip() for at, answer in answers.items()}
    return [
        scored
        | {"question": rows[at]["question"], "tokens": len(prompts[at]), "over_long": at not in answers}
        | {"generated_tokens": answers[at].tokens if at in answers else 0}
        for at, scored in enumerate(score_predictions(rows, predictions))
    ]


def squad_metrics(prefix: str, items: Sequence[dict], bootstrap: Bootstrap) -> dict[str, float]:
    """Exact match and F1 in per cent with bounds, and how many questions were asked, left unanswered and too long."""
    clusters = [cluster_of(item) for item in items]
    metrics = bootstrap.share(f"{prefix}exact_match", [100 * item["exact_match"] for item in items], clusters)
    metrics |= bootstrap.share(f"{prefix}f1", [100 * item["f1"] for item in items], clusters)
    metrics |= {f"{prefix}items": float(len(items)), f"{prefix}clusters": float(len(set(clusters)))}
    metrics[f"{prefix}unanswered"] = float(sum(not item["answered"] for item in items))
    metrics[f"{prefix}over_long"] = float(sum(item.get("over_long", False) for item in items))
    return metrics


def one_shot_examples(rows: Sequence[dict], seed: int) -> list[dict]:
    """Two answered questions on different paragraphs: the second stands in where the first's paragraph is asked about.

    Raises:
        UserError: all rows share one paragraph, so that no example can be independent of the question.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    for index in order[1:]:
        if rows[index]["context"] != rows[order[0]]["context"]:
            return [rows[order[0]], rows[index]]
    raise UserError("one-shot SQuAD needs questions on at least two paragraphs; use num_fewshot 0")


def read_predictions(path: str | Path) -> dict[str, str]:
    """An official prediction file, {"question id": "answer"}.

    Raises:
        UserError: the file is missing, is not JSON, or is not such an object.
    """
    try:
        predictions = json.loads(Path(path).expanduser().read_bytes())  # UTF-8, UTF-16 or UTF-32, marked or not
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"squad_predictions must be a JSON file of id to answer, got {path}, which cannot be read: {error}"
        ) from None
    if not isinstance(predictions, dict) or not all(isinstance(value, str) for value in predictions.values()):
        raise UserError(
            f'squad_predictions must be an object of strings, {{"question id": "answer", ...}}, got others in {path}'
        )
    return predictions


def check_predictions(path: str | Path, rows: Rows) -> list[str]:
    """What a prediction file leaves open of the questions, in a line; none where it answers them all.

    Raises:
        UserError: as `read_predictions`; or it answers none of the questions.
    """
    predictions, asked = read_predictions(path), {row["id"] for row in rows}
    answered = len(asked & predictions.keys())
    if not answered:
        raise UserError(
            f"squad_predictions must answer questions of SQuAD v1.1's development set by their ids, got {path}, "
            f"none of whose {len(predictions):,} ids is one of them"
        )
    if answered == len(asked):
        return []
    return [f"{path} leaves {len(asked) - answered:,} of {len(asked):,} questions unanswered, which count as wrong"]


def predictions_of(items: Sequence[dict]) -> str:
    """Items as an official prediction file, which the official script and `read_predictions` take."""
    return json.dumps({item["id"]: item["prediction"] for item in items if item["answered"]}, ensure_ascii=False)


def _check_questions(rows: Sequence[dict]) -> None:
    """Answers are kept by id; without a reference, every answer would count as wrong."""
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise UserError(f"id of a question must be its own, got {row['id']!r} twice; number them anew")
        seen.add(row["id"])
        texts = row["answers"]["text"]
        if (
            isinstance(texts, str)
            or not len(texts)
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise UserError(f"answers of question {row['id']!r} must be one or more texts, got {texts!r}; leave it out")


def _prompt(model: LanguageModel, row: dict, examples: Sequence[dict], chat: bool) -> str:
    if chat:
        return model.render_chat(_shot(row, examples, squad_chat_question) + squad_chat_question(row))
    return _shot(row, examples, squad_prompt) + squad_prompt(row)


def _shot(row: dict, examples: Sequence[dict], template: Callable[[dict], str]) -> str:
    for example in examples:
        if example["context"] != row["context"]:
            return f"{template(example)} {example['answers']['text'][0]}\n\n"
    return ""


def score_prediction_file(path: str | Path, rows: Rows, settings: ScoringSettings) -> Evaluation:
    """Score an official prediction file over all rows, as the official script does.

    Raises:
        UserError: as `read_predictions`.
    """
    from edgequant.evaluation.statistics.intervals import Bootstrap

    items = score_predictions(rows, read_predictions(path))
    return Evaluation(squad_metrics("squad/", items, Bootstrap.of(settings)), {"squad": items})


def score_spans(
    model: LanguageModel, rows: Rows, pool: Rows, settings: ScoringSettings, *, name: str, prefix: str
) -> Evaluation:
    """Items under `name` and metrics under `prefix` of span questions; worked examples are drawn from the pool."""
    from edgequant.evaluation.statistics.intervals import Bootstrap

    examples = one_shot_examples(pool, settings.seed) if settings.num_fewshot else []
    items = squad_items(
        model, rows, examples=examples, max_new_tokens=settings.max_new_tokens, chat=settings.chat_template
    )
    return Evaluation.of_items(name, items, squad_metrics(prefix, items, Bootstrap.of(settings)))


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    rows = draw_questions(data["squad"], "squad", settings.limit, settings.seed)
    scored = score_spans(model, rows, data["squad"], settings, name="squad", prefix="squad/")
    return scored + Evaluation(files={"squad_predictions.json": predictions_of(scored.items["squad"])})


def _texts(rows: Rows) -> list[str]:
    """Contexts and questions."""
    return list(dict.fromkeys(row[column] for column in ("context", "question") for row in rows))


_COUNTS = {"squad/items": "questions", "squad/clusters": "articles"}

SQUAD = Task(
    name="squad",
    score=_score,
    data=(DataSet(name="squad", report="validation", select=("train", "validation"), texts=_texts),),
    protocol="SQuAD v1.1 development set, greedy answers, official normalisation; exact match and F1 in per cent.",
    display={
        "squad/exact_match": Metric(
            "SQuAD exact match", "%", "higher", prominence="summary", floor=0.0, counts=_COUNTS
        ),
        "squad/f1": Metric("SQuAD F1", "%", "higher", floor=0.0, counts=_COUNTS),
    },
    paired=(Paired(metric="squad/f1", table="squad", value="f1", chance=0.0, nouns=("questions", "articles")),),
)
