"""Perplexity of the project's held-out disaster-management documents, as a whole and by functional domain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.sampling import draw_evenly
from edgequant.evaluation.tasks.perplexity import (
    Scored,
    drawn_windows,
    perplexity_metrics,
    score_documents,
    window_for,
)
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Paired, Rows, Task

if TYPE_CHECKING:
    from edgequant.evaluation.statistics.intervals import Bootstrap


def document_perplexity(
    model: LanguageModel,
    documents: Sequence[tuple[str, str]],
    *,
    window: int | None = None,
    ids: Sequence[str] | None = None,
) -> Scored:
    """Score each document on its own, every token once; long documents in disjoint pieces.

    Args:
        documents: (domain, text) pairs.
        ids: of the documents; None numbers them.

    Returns:
        One row per document: `id`, `domain`, `nats`, `tokens`, `bytes`.
    """
    size = window_for(model, window)
    if not documents:
        raise UserError("there are no documents to score; the domain split is empty")
    names = ids or [f"document-{at}" for at in range(len(documents))]
    rows = [{"id": name, "domain": domain, "text": text} for name, (domain, text) in zip(names, documents, strict=True)]
    return Scored(score_documents(model, rows, size), size)


def domain_metrics(scored: Scored, bootstrap: Bootstrap) -> dict[str, float]:
    """`domain/perplexity` over all documents and `domain/perplexity_<domain>` for each domain, with bounds."""
    metrics = perplexity_metrics("domain", scored, bootstrap) | {"domain/documents": float(len(scored.rows))}
    for domain in sorted({row["domain"] for row in scored.rows}):
        rows = Scored([row for row in scored.rows if row["domain"] == domain], scored.window)
        name = "domain/perplexity_" + re.sub(r"[^a-z0-9]+", "_", domain.lower()).strip("_")
        metrics |= rows.perplexity(name, "tokens", bootstrap)
    return metrics


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    from edgequant.evaluation.statistics.intervals import Bootstrap

    numbered = [(domain, (f"document-{at}", text)) for at, (domain, text) in enumerate(data["domain"])]
    drawn = draw_evenly(numbered, drawn_windows(settings.limit), settings.seed)
    documents, ids = [(domain, text) for domain, (_, text) in drawn], [name for _, (name, _) in drawn]
    scored = document_perplexity(model, documents, window=settings.window, ids=ids)
    return Evaluation(domain_metrics(scored, Bootstrap.of(settings)), {"domain": scored.rows})


def _texts(rows: Rows) -> list[str]:
    return [text for _, text in rows]


_COUNTS = {"domain/documents": "documents"}

DOMAIN_PERPLEXITY = Task(
    name="domain_perplexity",
    group="domain",
    score=_score,
    data=(DataSet(name="domain", report="test", select=("validation",), drawn=False, texts=_texts),),
    protocol="Perplexity of the project's held-out disaster-management documents, each read on its own. "
    "Lower is better; the documents are written for this project.",
    display={"domain/perplexity": Metric("perplexity (domain)", "", "lower", digits=4, counts=_COUNTS)},
    paired=(Paired(metric="domain/perplexity", table="domain", nouns=("documents", "documents")),),
)
