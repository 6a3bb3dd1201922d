"""The front on test data: every trial that none dominates, beside the untuned recipe and the model as it came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgequant import models, tracking
from edgequant.evaluation.evidence_file import Conditions, Items, Scores
from edgequant.evaluation.pairing import PairedDifference, Pairing
from edgequant.evaluation.statistics.verdicts import holm, side, word
from edgequant.evaluation.tasks.registry import paired_metrics
from edgequant.reporting.columns import metric
from edgequant.workflows.shipping import NOTHING_SHIPS, Deployed, deploy_folder
from edgequant.workflows.steps.data import evaluation_data
from edgequant.workflows.steps.measure import measure_items
from edgequant.workflows.steps.register import conditions_of, numbers
from edgequant_tune.scoring.selection import HALF, Selection, selection
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.trial_records import RECIPE, TrialRecord, pareto_front

Rows = dict[str, dict[str, Any]]
BASELINE, UNTUNED, BEST = "baseline", "recipe", "tuned"  # variants; others are named as their trials


class Front(NamedTuple):
    """What was measured in full: rows for the table, the items behind them, under which conditions, what ships.

    Attributes:
        rows, items: by variant, the winner's as `tuned`.
        trials: by variant, the trial.
        ships: what ships of the winner.
        notes: which data were halved.
    """

    rows: Rows
    items: dict[str, Items]
    trials: dict[str, TrialRecord]
    conditions: Conditions
    ships: Deployed
    notes: list[str]


def measure_front(spec: SearchSpec, records: Sequence[TrialRecord], best: TrialRecord) -> Front:
    """Measure the model as it came, the untuned recipe, the winner and the rest of the front, as `qat` would.

    All on the same data, none of which any trial was scored on; the winner's metrics go on the parent too.
    """
    trial = spec.trial
    chosen = selection(
        evaluation_data(spec.evaluation.tasks, trial.run.data_dir), trial.evaluation.tasks, trial.dataset,
        trial.run.data_dir,
    )  # fmt: skip
    trials = measured_trials(spec, records, best)
    rows: Rows = {}
    items: dict[str, Items] = {}
    ships = NOTHING_SHIPS
    for variant, record in {BASELINE: None, **trials}.items():
        row, found, deployed = _measured(spec, variant, record, chosen)
        rows[variant], items[variant] = row, found
        ships = deployed if variant == BEST else ships
    tracking.log_metrics(numbers(rows[BEST]))
    tracking.set_tags(ships.tags)
    conditions = conditions_of(spec.evaluation, chosen.report, trial.run)
    front = Front(rows, items, trials, conditions, ships, halved(chosen))
    tracking.log_table(front_table(spec, front), "front.json")
    return front


def measured_trials(spec: SearchSpec, records: Sequence[TrialRecord], best: TrialRecord) -> dict[str, TrialRecord]:
    """By variant, the trials whose checkpoints are measured on test data: the recipe's, the winner, the front."""
    first = [one for one in records if one.number == RECIPE and spec.recipe is not None and one.status == "finished"]
    named = {UNTUNED: first[0]} if first and first[0] is not best else {}
    front = [one for one in pareto_front(records, spec.objectives) if one not in (best, *first)]
    wanted = {**named, BEST: best, **{one.name: one for one in front}}
    return {variant: one for variant, one in wanted.items() if one.checkpoint and Path(one.checkpoint).is_dir()}


def against_the_recipe(front: Front) -> list[str]:
    """How the winner differs from the untuned recipe, paired item by item, in words."""
    if UNTUNED not in front.rows:
        first = front.trials[BEST].number == RECIPE
        return ["the untuned recipe is the best trial: no trial beat it"] if first else []
    scores = [Scores(numbers(front.rows[name]), front.items[name]) for name in (UNTUNED, BEST)]
    pairing = Pairing(scores[0], scores[1], front.conditions, front.conditions)
    names = dict.fromkeys(paired.metric for paired in paired_metrics() if paired.metric in front.rows[BEST])
    found = {name: difference for name in names if (difference := pairing.difference(name)) is not None}
    judged = {name: p for name, each in found.items() if not each.chance and (p := each.p_value(0.0)) is not None}
    adjusted = dict(zip(judged, holm(list(judged.values())), strict=True))
    return [
        f"against the untuned recipe: {name} {each.chance or _word(name, each, adjusted.get(name))} ({each.words})"
        for name, each in found.items()
    ]


def _word(name: str, found: PairedDifference, p: float | None) -> str:
    higher_is_better = metric(name).better == "higher"
    return word(side(found.low, found.high, p=p), found.difference, higher_is_better=higher_is_better)


def front_table(spec: SearchSpec, front: Front) -> list[dict[str, Any]]:
    """Every measured model: what it was trained with, how it scored as a trial, and on test data with intervals."""
    table = []
    for variant, row in front.rows.items():
        record = front.trials.get(variant)
        as_trial = {f"as a trial: {o.metric}": record.metrics.get(o.metric) for o in spec.objectives} if record else {}
        number = {"trial": record.number} if record else {}
        table.append({**row, **number, **(record.values if record else {}), "scheme": row["scheme"], **as_trial})
    return table


# -------------------------------------------------------------------------------------------------------------- inside


def _measured(
    spec: SearchSpec, variant: str, record: TrialRecord | None, chosen: Selection
) -> tuple[dict[str, Any], Items, Deployed]:
    run = spec.trial.run
    scheme = "none" if record is None else spec.trial.with_values(record.values).scheme
    source = spec.trial.model if record is None else str(record.checkpoint)
    checkpoint = None if record is None else Path(source)
    with tracking.variant_run(variant, model=spec.model_name, scheme=scheme, phase="tune"):
        loaded = models.load(source, dtype=run.dtype, device=run.device)
        found = measure_items(loaded.model, loaded.tokenizer, chosen.report, spec.evaluation, checkpoint=loaded.stored)
    ships = NOTHING_SHIPS
    if checkpoint is not None and spec.method == "qat":
        ships = deploy_folder(checkpoint, None, spec.trial.timing)
    row = {"variant": variant, "model": spec.model_name, "scheme": scheme, **found.metrics, **ships.cells}
    return row, found.items, ships


def halved(chosen: Selection) -> list[str]:
    """A line about data sets whose reported rows were halved."""
    halved = [name for name, split in chosen.splits.items() if split == HALF]
    if not halved:
        return []
    return [f"{', '.join(halved)}: trials were scored on one half of what is reported, for want of another split that "
            "is not trained on; the other half is reported"]  # fmt: skip
