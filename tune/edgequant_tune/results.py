"""What a search leaves behind: figures, the winner measured beside its baseline, a registered version, tables."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgequant import tracking
from edgequant.evaluation.evidence_file import Scores
from edgequant.reporting.console import print_table, summary_console
from edgequant.reporting.figure_files import log_figure
from edgequant.workflows.steps.register import promote_command, register_version
from edgequant.workflows.steps.summary import print_summary
from edgequant_tune import figures, trial_records
from edgequant_tune.bookkeeping.trial_runs import name_best
from edgequant_tune.outcome.front import BASELINE, BEST, Front, against_the_recipe
from edgequant_tune.outcome.range_ends import at_the_ends
from edgequant_tune.outcome.recipe import FILE, recipe_text
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.trial_records import TrialRecord


def log_search(spec: SearchSpec, records: Sequence[TrialRecord], run: tracking.Run) -> TrialRecord:
    """File trials, figures and the best hyperparameters with the run; of a search that went on, as they are now.

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
    for name, figure in figures.figures(records, spec.space, spec.objectives, spec.trial.constraints).items():
        log_figure(figure, name)
    tracking.log_metrics(
        {f"best_trial/{o.metric.replace('/', '_')}": best[0].metrics[o.metric] for o in spec.objectives}
    )
    name_best(best[0], run, of=len(records))
    tracking.set_tags({"edgequant.scheme": scheme_of(spec, best[0])})
    return best[0]


def scheme_of(spec: SearchSpec, record: TrialRecord) -> str:
    return str(record.values.get("scheme", spec.trial.scheme))


def file_checkpoint(spec: SearchSpec, best: TrialRecord, measured: Front, run: tracking.Run, *, register: bool) -> str:
    """File the winner's recipe and checkpoint with the run, and register it as `edgequant-<model>`.

    Returns:
        The checkpoint's MLflow URI.
    """
    folder = Path(best.checkpoint or "")
    tracking.log_text(recipe_text(spec, best, run.id), FILE)
    if not register:
        tracking.log_folder(folder, "checkpoint")
        return f"runs:/{run.id}/checkpoint"
    scores = {variant: Scores(row, measured.items[variant]) for variant, row in measured.rows.items()}
    return register_version(
        folder, model=spec.model_name, scheme=scheme_of(spec, best), variant=BEST, tags=measured.ships.tags,
        measured=scores[BEST], baseline=scores[BASELINE], conditions=measured.conditions,
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
    measured: Front,
    run: tracking.Run,
    checkpoint: str,
    notes: Sequence[str] = (),
) -> None:
    """The trials, then the front measured on test data beside the recipe and the baseline, and what to do next."""
    print_table(f"{len(records)} trials, scored on validation data", table(spec, records), summary_console())
    title = f"tune: {spec.model_name}, {best.name} and the front on test data"
    lead = [*_constraints(spec, best), *against_the_recipe(measured), *measured.ships.lead]
    notes = [*notes, *at_the_ends(spec, best), *measured.notes, *measured.ships.notes]
    drawn = figures.front_figure(list(measured.rows.values()), spec.objectives, spec.trial.constraints)
    for name, figure in drawn.items():
        log_figure(figure, name)
    items = [measured.items[variant] for variant in measured.rows]
    following = next_command(checkpoint, spec.method)
    print_summary(title, list(measured.rows.values()), run, following, lead=lead, notes=notes, items=items)


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
