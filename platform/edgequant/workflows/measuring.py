"""Measuring one model: a nested run with the contract's metrics, the items behind them and remarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.suite import EvaluationData

# What a model is measured on for comparison's sake alone: its size and speed are those of the model it stands beside.
QUALITY_MEASURES = ("perplexity", "boolq", "squad", "domain_perplexity")


def measure(
    model: Any,
    tokenizer: Any,
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    checkpoint: Path | None = None,
) -> dict[str, float]:
    """Measure a model and log metrics, per-item tables and notes on the active run; returns the metrics."""
    from edgequant import tracking
    from edgequant.evaluation.suite import evaluate_model

    evaluation = evaluate_model(model, tokenizer, data, settings, checkpoint=checkpoint)
    tracking.log_metrics(evaluation.metrics)
    for name, rows in evaluation.items.items():
        tracking.log_table(rows, f"items/{name}.json")
    if evaluation.notes:
        tracking.log_text("\n".join(evaluation.notes) + "\n", "notes.txt")
    return evaluation.metrics


def quality_only(settings: EvaluationSettings) -> EvaluationSettings:
    """The same settings without speed, energy and the longer question sets."""
    return replace(settings, measures=tuple(name for name in settings.measures if name in QUALITY_MEASURES))
