"""Measuring one model: a nested run with edgequant's metrics, the items behind them and remarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.evaluation.evidence import floor_of
from edgequant.evaluation.evidence_file import kept_items
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.guard import GUARD
from edgequant.evaluation.tasks.registry import COMPARISON_TASKS, find_task, known_tasks
from edgequant.evaluation.tasks.task import Evaluation
from edgequant.files import read_json, write_atomically
from edgequant.reporting.columns import metric, summary_metrics
from edgequant.training.settings import UNTRAINED

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import EvaluationData
    from edgequant.workflows.steps.qat_experiment import QatExperiment

# Enough to compare variants within one run, and short: `evaluate` measures a single model at length.
COMPARISON = EvaluationSettings(
    tasks=COMPARISON_TASKS,
    limit=200,
    latency_prompt_lengths=(128,),
    latency_batch_sizes=(1,),
    latency_methods=("generate",),
    latency_new_tokens=32,
    latency_warmup=1,
)
# What grows where tokens are decoded one by one, as they are to be timed.
MEMORY = ("size/resident_gb", "size/peak_rss_gb", "size/peak_cuda_gb")


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics on which variants of a model are compared, each with its interval's bounds where it has them, and
    with its floor and what it was counted on where those were measured too."""
    names = [f"{name}{bound}" for name in summary_metrics() for bound in ("", "_ci_low", "_ci_high")]
    names += [name for name in metrics if name.startswith("deploy/") and not name.endswith("_p90")]
    names += [floor for name in summary_metrics() if isinstance(floor := metric(name).floor, str)]
    names += [count for name in summary_metrics() for count in metric(name).counts]
    return {name: metrics[name] for name in names if name in metrics}


def measure(
    model: Any,
    tokenizer: Any,
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    checkpoint: Path | None = None,
) -> dict[str, float]:
    """Measure a model and log metrics, per-item tables and notes on the active run; returns the metrics."""
    return measure_items(model, tokenizer, data, settings, checkpoint=checkpoint).metrics


def measure_items(
    model: Any,
    tokenizer: Any,
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    checkpoint: Path | None = None,
    known: Evaluation | None = None,
) -> Evaluation:
    """As `measure`; returns the items behind the metrics too. `known` is what need not be measured."""
    from edgequant import tracking
    from edgequant.evaluation.suite import evaluate_model

    evaluation = evaluate_model(model, tokenizer, data, settings, checkpoint=checkpoint) + (known or Evaluation())
    tracking.log_metrics(evaluation.metrics)
    floors = [name for name in evaluation.metrics if floor_of(name, evaluation.metrics)]
    said = [f"not told from a model that knows nothing: {', '.join(floors)}"] if floors else []
    for name, rows in evaluation.items.items():
        tracking.log_table(rows, f"items/{name}.json")
    for file, text in evaluation.files.items():
        tracking.log_text(text, file)
    if notes := [*evaluation.notes, *said]:
        tracking.log_text("\n".join(notes) + "\n", "notes.txt")
    return evaluation


def log_layer_errors(errors: Sequence[Mapping[str, Any]]) -> None:
    """The per-layer error table and its figure as artifacts of the active run."""
    if not errors:
        return
    from edgequant import tracking
    from edgequant.reporting.figure_files import log_figure
    from edgequant.reporting.layer_errors import layer_error_figure

    tracking.log_table(errors, "layer_errors.json")
    log_figure(layer_error_figure(errors), "layer_errors.html")


def quality_only(settings: EvaluationSettings) -> EvaluationSettings:
    """The same settings without speed, energy and the longer question sets.

    For what is measured for comparison's sake alone: its size and speed are those of the model it stands beside.
    """
    tasks = [find_task(name) for name in settings.tasks]
    return replace(settings, tasks=tuple(task.name for task in tasks if task.comparison and task.kind == "quality"))


def _is_efficiency(task: str) -> bool:
    return find_task(task).kind == "efficiency"


def _efficiency_of(variant: str | None, folder: Path) -> Evaluation | None:
    """Speed, energy and memory as measured on another variant of the same comparison; None where they were not."""
    kept = None if variant is None else read_json(folder / f"{variant}.json")
    if kept is None:
        return None
    tasks = [task for task in known_tasks() if _is_efficiency(task.name)]
    metrics = {name: value for name, value in kept["metrics"].items() if any(task.owns(name) for task in tasks)}
    if metrics:
        metrics |= {name: kept["metrics"][name] for name in MEMORY if name in kept["metrics"]}
    said = f"speed, energy and memory are those of {variant}, whose layout it has; measured once"
    return Evaluation(metrics, notes=[said]) if metrics else None


def with_guard(settings: EvaluationSettings) -> EvaluationSettings:
    """The same settings with the guard text measured too, which every comparison needs."""
    return settings if GUARD.name in settings.tasks else replace(settings, tasks=(*settings.tasks, GUARD.name))


def log_variant(variant: str, metrics: Mapping[str, float]) -> None:
    """One line as soon as a variant is measured, so that a long run shows that it moves."""
    shown = [f"{name} {metrics[name]:.4g}" for name in summary_metrics() if name in metrics]
    print(f"measured {variant:12} {', '.join(shown[:5])}", flush=True)


class Variant(NamedTuple):
    """A model ready to be measured.

    Attributes:
        checkpoint: its folder on disk, or that of what it was trained from, whose bytes count as its size.
        metrics: what making it told already; `layer_errors`, layer by layer.
        settings: of its evaluation, where it is not measured on everything.
        notes: what making it told in words, by name.
        parameters: by what its run is compared with those of other variants.
        as_fast_as: variant of the same layout, whose speed, energy and memory are its own where they were measured.
    """

    model: Any
    tokenizer: Any
    checkpoint: Path | None = None
    metrics: Mapping[str, float] = {}
    settings: EvaluationSettings | None = None
    layer_errors: Sequence[Mapping[str, Any]] = ()
    notes: Mapping[str, str] = {}
    parameters: Mapping[str, object] = UNTRAINED
    as_fast_as: str | None = None


class Measured(NamedTuple):
    """A variant, measured.

    Attributes:
        items: rows behind the metrics by table, with what paired comparisons need.
        notes: as the variant's.
    """

    metrics: dict[str, float]
    items: dict[str, list[dict[str, Any]]]
    notes: dict[str, str]


def measure_variant(variant: str, make: Callable[[QatExperiment], Variant], experiment: QatExperiment) -> Measured:
    """Make a variant and measure it in a nested run, unless the interrupted run had done so.

    The result is kept as <variant>.json in the experiment's folder, for a run that is resumed.
    """
    from edgequant import tracking

    kept = experiment.folder / f"{variant}.json"
    if experiment.resume and (found := read_json(kept)) is not None:
        return Measured(**found)
    scheme = "none" if variant in ("baseline", "control") else experiment.scheme.name
    with tracking.variant_run(variant, model=experiment.name, scheme=scheme, phase="qat"):
        made = make(experiment)
        settings = with_guard(made.settings or experiment.evaluation)
        known = _efficiency_of(made.as_fast_as, experiment.folder)
        if known is not None:
            settings = replace(settings, tasks=tuple(name for name in settings.tasks if not _is_efficiency(name)))
        evaluation = measure_items(
            made.model, made.tokenizer, experiment.data, settings, checkpoint=made.checkpoint, known=known
        )
        tracking.log_metrics(made.metrics)
        tracking.log_params(made.parameters)
        if any(made.notes.values()):
            tracking.log_text(json.dumps(made.notes, indent=2) + "\n", "training.json")
        log_layer_errors(made.layer_errors)
    measured = Measured(evaluation.metrics | dict(made.metrics), kept_items(evaluation.items), dict(made.notes))
    log_variant(variant, measured.metrics)
    write_atomically(kept, json.dumps(measured._asdict()))
    return measured
