"""What a search leaves behind: figures, the winner measured beside its baseline, a registered version, tables."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgequant import models, tracking
from edgequant.evaluation.evidence_file import Conditions, Items, Scores
from edgequant.reporting.console import print_table, summary_console
from edgequant.reporting.figure_files import log_figure
from edgequant.workflows.shipping import NOTHING_SHIPS, Deployed, deploy_folder
from edgequant.workflows.steps.data import evaluation_data
from edgequant.workflows.steps.measure import measure_items
from edgequant.workflows.steps.register import conditions_of, numbers, promote_command, register_version
from edgequant.workflows.steps.summary import print_summary
from edgequant_tune import figures, trial_records
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.trial_records import TrialRecord

Rows = dict[str, dict[str, Any]]
BEST = "tuned"  # variant of the best trial's checkpoint, measured in full


def log_search(spec: SearchSpec, records: Sequence[TrialRecord]) -> TrialRecord:
    """File trials, figures and the best hyperparameters with the run.

    Returns:
        The best trial by the first objective.

    Raises:
        RuntimeError: no trial finished; says how the first one failed.
    """
    best = trial_records.ranked(records, spec.objectives)
    tracking.log_table(full_table(spec, records), "trials.json")
    counts = {status: sum(o.status == status for o in records) for status in ("finished", "stopped", "failed")}
    tracking.log_metrics({f"trials/{status}": count for status, count in counts.items()})
    if not best:
        reasons = [record.error for record in records if record.error] or ["no objective was measured"]
        raise RuntimeError(
            f"none of {len(records)} trials finished with {spec.objectives[0].metric}; first error: {reasons[0]}"
        )
    for name, figure in figures.figures(records, spec.space, spec.objectives).items():
        log_figure(figure, name)
    tracking.log_params({f"best.{name}": value for name, value in best[0].values.items()})
    tracking.log_metrics(
        {f"best_trial/{o.metric.replace('/', '_')}": best[0].metrics[o.metric] for o in spec.objectives}
    )
    tracking.set_tags({"edgequant.best_trial": best[0].name, "edgequant.scheme": scheme_of(spec, best[0])})
    return best[0]


def scheme_of(spec: SearchSpec, record: TrialRecord) -> str:
    return str(record.values.get("scheme", spec.trial.scheme))


class Best(NamedTuple):
    """The winner beside its baseline: rows for the table, the items behind them, under which conditions, what ships."""

    rows: Rows
    items: dict[str, Items]
    conditions: Conditions
    ships: Deployed


def measure_best(spec: SearchSpec, best: TrialRecord) -> Best:
    """Measure the winner and the model it came from as `qat` would; the winner's metrics go on the parent too."""
    data = evaluation_data(spec.evaluation.tasks, spec.trial.run.data_dir)
    assert best.checkpoint is not None
    sources = {"baseline": (spec.trial.model, None), BEST: (best.checkpoint, Path(best.checkpoint))}
    rows: Rows = {}
    items: dict[str, Items] = {}
    for variant, (source, checkpoint) in sources.items():
        scheme = scheme_of(spec, best) if checkpoint else "none"
        with tracking.variant_run(variant, model=spec.model_name, scheme=scheme, phase="tune"):
            loaded = models.load(source, dtype=spec.trial.run.dtype, device=spec.trial.run.device)
            found = measure_items(loaded.model, loaded.tokenizer, data, spec.evaluation, checkpoint=checkpoint)
        rows[variant] = {"variant": variant, "model": spec.model_name, "scheme": scheme, **found.metrics}
        items[variant] = found.items
    ships = deploy_folder(Path(best.checkpoint), None, spec.trial.timing) if spec.method == "qat" else NOTHING_SHIPS
    rows[BEST] |= ships.cells
    tracking.log_metrics(numbers(rows[BEST]))
    tracking.set_tags(ships.tags)
    return Best(rows, items, conditions_of(spec.evaluation, data, spec.trial.run), ships)


def file_checkpoint(spec: SearchSpec, best: TrialRecord, measured: Best, run: tracking.Run, *, register: bool) -> str:
    """File the winner's checkpoint with the run, and register it as `edgequant-<model>`; returns its MLflow URI."""
    folder = Path(best.checkpoint or "")
    if not register:
        tracking.log_folder(folder, "checkpoint")
        return f"runs:/{run.id}/checkpoint"
    scores = {variant: Scores(row, measured.items[variant]) for variant, row in measured.rows.items()}
    return register_version(
        folder, model=spec.model_name, scheme=scheme_of(spec, best), variant=BEST, tags=measured.ships.tags,
        measured=scores[BEST], baseline=scores["baseline"], conditions=measured.conditions,
    )  # fmt: skip


def full_table(spec: SearchSpec, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Every trial with everything that is known of it."""
    return [
        {"trial": o.number, "status": o.status, "step": o.step, "seconds": o.seconds, "error": o.error}
        | o.values
        | o.metrics
        for o in records
    ]


def table(spec: SearchSpec, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """The trials that the summary table shows."""
    names = {"model": spec.model_name, "scheme": spec.trial.scheme}
    return trial_records.table(records, spec.objectives, **names, constraints=spec.trial.constraints)


def print_results(
    spec: SearchSpec,
    records: Sequence[TrialRecord],
    best: TrialRecord,
    rows: Rows,
    run: tracking.Run,
    checkpoint: str,
    ships: Deployed = NOTHING_SHIPS,
    notes: Sequence[str] = (),
) -> None:
    """The trials, then the best one measured in full beside its baseline, and what to do next; notes below."""
    print_table(f"{len(records)} trials, scored on validation data", table(spec, records), summary_console())
    title = f"tune: {spec.model_name}, {best.name} measured in full"
    lead, notes = [*_constraints(spec, best), *ships.lead], [*notes, *ships.notes]
    print_summary(title, list(rows.values()), run, next_command(checkpoint, spec.method), lead=lead, notes=notes)


def _constraints(spec: SearchSpec, best: TrialRecord) -> list[str]:
    """Whether the best trial keeps the constraints, as it was measured as a trial."""
    if not (constraints := spec.trial.constraints):
        return []
    missed = [str(one) for one in constraints if one.excess(best.metrics)]
    said = ", ".join(map(str, constraints))
    if not missed:
        return [f"constraints: {best.name} keeps {said}"]
    return [f"constraints: no trial keeps {said}; {best.name} breaks {', '.join(missed)} least and is not registered"]


def next_command(checkpoint: str, method: str) -> str:
    """What a user would do with the result."""
    if checkpoint.startswith("models:/"):
        return promote_command(checkpoint)
    return f"edgequant {'qat' if method == 'finetune' else 'evaluate'} --model {shlex.quote(checkpoint)}"
