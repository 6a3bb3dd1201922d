"""Questions on the project's own documents: yes or no as BoolQ, spans as SQuAD."""

from __future__ import annotations

from collections.abc import Mapping

from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.sampling import draw_questions
from edgequant.evaluation.tasks.boolq import score_yes_or_no
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


DOMAIN_QA = Task(
    name="domain_qa",
    score=_score,
    data=(DataSet(name="domain_boolean"), DataSet(name="domain_span")),
    protocol="Questions on the project's own documents, yes/no by likelihood and spans by greedy answers.",
    display={
        "domain_qa/boolean_accuracy": Metric(
            "domain QA boolean accuracy", "%", "higher", prominence="table", floor="domain_qa/boolean_majority"
        ),
        "domain_qa/boolean_balanced_accuracy": Metric(
            "domain QA boolean balanced accuracy", "%", "higher", prominence="detail", floor=50.0
        ),
        "domain_qa/span_exact_match": Metric(
            "domain QA span exact match", "%", "higher", prominence="detail", floor=0.0
        ),
        "domain_qa/span_f1": Metric("domain QA span f1", "%", "higher", prominence="table", floor=0.0),
    },
    paired=(
        Paired(metric="domain_qa/boolean_accuracy", table="domain_boolean", value="correct"),
        Paired(metric="domain_qa/span_f1", table="domain_span", value="f1"),
    ),
    comparison=False,
)
