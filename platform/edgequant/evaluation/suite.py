"""One call that measures everything: `evaluate_model(model, tokenizer, data, settings)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.backends.cached_model import CachedModel
from edgequant.evaluation.backends.footprint import PeakMemory
from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.evidence import checked
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.registry import find_task
from edgequant.evaluation.tasks.task import Evaluation, EvaluationData, Task


def evaluate_model(
    model: Any,
    tokenizer: Any,
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    checkpoint: Path | None = None,
) -> Evaluation:
    """Measure a model under stated protocols.

    Args:
        model: a transformers causal model on its device, or anything with the `LanguageModel` interface.
        tokenizer: its tokenizer; None for a model that brings its own.
        data: rows by data set, as the tasks name them; a task without its data is left out with a note.
        checkpoint: the folder or file the model was loaded from, whose bytes count as its size on disk.

    Returns:
        Metrics under the project's names (sample statistics with `_ci_low` and `_ci_high`), items, notes, files.

    Raises:
        UserError: NaN logits, a headline metric that is no number (`evidence.checked`), a set without items, a window
            or prompt beyond the model's context, no chat template.

    Example:
        data = {"boolq": load_boolq("validation")}
        evaluate_model(model, tokenizer, data, EvaluationSettings(tasks=("boolq",), limit=200)).metrics
    """
    was_training = getattr(model, "training", False)
    scorer = language_model(model, tokenizer, settings)
    measured = Evaluation(notes=[", ".join(f"{key} {value}" for key, value in scorer.description.items())])
    try:
        with PeakMemory() as peak:
            for name in settings.tasks:
                measured += _measured(find_task(name), scorer, data, settings)
    finally:
        if was_training:
            model.train()
    measured += Evaluation(peak.metrics() | scorer.footprint(checkpoint))
    if isinstance(scorer, CachedModel) and scorer.reused:
        note = f"{scorer.reused} scores were read from {settings.cache_dir}, computed earlier"
        measured += Evaluation(notes=[note])
    return measured


def language_model(model: Any, tokenizer: Any, settings: EvaluationSettings) -> LanguageModel:
    """The model behind the evaluation's interface, with its scores remembered where a cache folder is set."""
    if not isinstance(model, LanguageModel | CachedModel):
        from edgequant.evaluation.backends.transformers_model import TransformersModel

        model = TransformersModel(model, tokenizer, bos=settings.bos, max_batch_tokens=settings.max_batch_tokens)
    return CachedModel(model, settings.cache_dir) if settings.cache_dir else model


def _measured(task: Task, model: LanguageModel, data: EvaluationData, settings: EvaluationSettings) -> Evaluation:
    """What a task measures, or a note that its data are absent."""
    given = {each.name: rows for each in task.data if (rows := data.get(each.name)) is not None}
    if task.data and not given:
        return Evaluation(notes=[f"{task.name} was left out: no data were given for it"])
    measured = task.score(model, given, settings)
    if foreign := [name for name in measured.metrics if not task.owns(name)]:
        raise UserError(f"task {task.name}: metric {foreign[0]!r} must begin with {task.group + '/'!r}")
    return checked(task, measured)
