"""Questions on the project's own documents: yes or no as BoolQ, spans as SQuAD."""

from __future__ import annotations

from collections.abc import Mapping

from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.sampling import draw_questions
from edgequant.evaluation.tasks.boolq import score_yes_or_no, yes_or_no_paired
from edgequant.evaluation.tasks.squad import score_spans
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Paired, Rows, Task


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    scored = Evaluation()
    if "domain_boolean" in data:
        rows = draw_questions(data["domain_boolean"], "domain_qa", settings.limit, settings.seed)
        scored += score_yes_or_no(model, rows, settings, name="domain_boolean", prefix="domain_qa/boolean_")
    if "domain_span" in data:
        pool = data["domain_span"]
        rows = draw_questions(pool, "domain_qa", settings.limit, settings.seed)
        scored += score_spans(model, rows, pool, settings, name="domain_span", prefix="domain_qa/span_")
    return scored


def _texts(rows: Rows) -> list[str]:
    """Passages and questions."""
    return list(
        dict.fromkeys(row[column] for column in ("passage", "context", "question") for row in rows if column in row)
    )


_NOUNS = ("questions", "documents")
_BOOLEAN, _SPAN = (
    {f"domain_qa/{kind}_{count}": noun for count, noun in zip(("items", "clusters"), _NOUNS, strict=True)}
    for kind in ("boolean", "span")
)

DOMAIN_QA = Task(
    name="domain_qa",
    score=_score,
    data=(DataSet(name="domain_boolean", texts=_texts), DataSet(name="domain_span", texts=_texts)),
    protocol="Questions on the project's own documents, yes/no by likelihood and spans by greedy answers.",
    display={
        "domain_qa/boolean_accuracy": Metric(
            "domain QA boolean accuracy",
            "%",
            "higher",
            prominence="table",
            floor="domain_qa/boolean_majority",
            counts=_BOOLEAN,
        ),
        "domain_qa/boolean_balanced_log_odds_margin": Metric(
            "domain QA log-odds margin", "nats", "higher", prominence="table", counts=_BOOLEAN
        ),
        "domain_qa/boolean_balanced_accuracy": Metric(
            "domain QA boolean balanced accuracy", "%", "higher", prominence="detail", floor=50.0, counts=_BOOLEAN
        ),
        "domain_qa/span_exact_match": Metric(
            "domain QA span exact match", "%", "higher", prominence="detail", floor=0.0, counts=_SPAN
        ),
        "domain_qa/span_f1": Metric("domain QA span f1", "%", "higher", prominence="table", floor=0.0, counts=_SPAN),
    },
    paired=(
        *yes_or_no_paired("domain_boolean", "domain_qa/boolean_", _NOUNS),
        Paired(metric="domain_qa/span_f1", table="domain_span", value="f1", chance=0.0, nouns=_NOUNS),
    ),
    comparison=False,
)
