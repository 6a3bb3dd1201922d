"""Perplexity of a general guard text: whether a model still writes as the model that it came from.

Text that the floating-point model sampled from its own distribution p costs any other model q, in expectation, p's
entropy and the divergence KL(p || q): the difference between two perplexities of it is what was lost or forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.tasks.perplexity import Scored, perplexity_metrics, score_documents, window_for
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Paired, Rows, Task


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    from edgequant.evaluation.statistics.intervals import Bootstrap

    size = window_for(model, settings.window)
    scored = Scored(score_documents(model, [{"text": text} for text in data["guard"]], size), size)
    metrics = perplexity_metrics("guard", scored, Bootstrap.of(settings))
    return Evaluation(metrics | {"guard/documents": float(len(scored.rows))}, {"guard": scored.rows})


def _none(_split: str, _data_dir: str | None) -> None:
    """The workflow that compares models sets it apart: there is no guard text without the model that wrote it."""


GUARD = Task(
    name="guard",
    score=_score,
    data=(DataSet(name="guard", load=_none, drawn=False, texts=list),),
    protocol="Perplexity of a general text that no variant was trained on, by default one that the floating-point "
    "model wrote itself: how far a variant is from that model. Measured by qat alone, which sets the text apart.",
    display={
        "guard/perplexity": Metric("perplexity (guard)", "", "lower", digits=4, counts={"guard/documents": "texts"})
    },
    by_default=False,
    paired=(Paired(metric="guard/perplexity", table="guard", nouns=("texts", "texts")),),
)
