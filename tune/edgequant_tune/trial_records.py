"""How trials ended: a record on disk that outlives a crash, and the questions asked of it (best, front, table)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from edgequant_tune.objectives import VIOLATION, Constraint, Objective, dominates

Status = Literal["finished", "stopped", "failed", "unfinished"]
RECORDS_FILE = "trials.jsonl"  # written by the ledger: a line when a trial begins, one when it ends
RECIPE = 1  # number of the trial that takes the recipe's settings
SEED = "seed"  # a trial's, where configurations are trained with several
SHOWN_BEST = 20
SHOWN_FAILED = 5


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial: the hyperparameters tried and what came of them.

    Metrics of `finished` trials are those of the checkpoint reloaded from disk; of a `stopped` one, those of training.
    `as_trained` has the settings that a trial took beside its values, because memory ran out with the given ones;
    `rung_losses` by step what it was compared by in training.
    """

    number: int
    id: str
    values: dict[str, Any]
    status: Status
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    error: str | None = None
    stopped_by: str | None = None
    as_trained: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    rung_losses: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"trial {self.number}"

    @property
    def note(self) -> str:
        """That its training was given up or changed nothing, as figures of finished QAT say; else empty."""
        kept, loss = self.metrics.get("train/best_step"), self.metrics.get("train/loss", 0.0)
        if self.status != "finished" or kept is None:
            return ""
        steps = int(self.metrics.get("train/steps", 0))
        said = [] if math.isfinite(loss) else [f"training given up at step {steps}, its loss was not finite"]
        if kept == 0:
            said.append("no trained state was better than PTQ, which is what was measured")
        elif said:
            said.append(f"what was measured is its state of step {kept:.0f}")
        return "; ".join(said)


NAMES = {field.name for field in fields(TrialRecord)}


def read_records(folder: Path) -> list[TrialRecord]:
    """The trials of a search by number, each as the last line of it says; none yet is an empty list.

    A line that a crash has cut is passed over.
    """
    path = folder / RECORDS_FILE
    found: dict[str, TrialRecord] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        record = TrialRecord(**{name: value for name, value in entry.items() if name in NAMES})
        found[record.id] = record
    return sorted(found.values(), key=lambda record: record.number)


def ranked(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Finished trials with usable objectives, best first; the first objective decides, the others break ties.

    Those that break a constraint come behind all that keep them, the least broken first. Trials that differ in their
    seed alone count by their mean: the best of several seeds would be luck.
    """
    usable = averaged([record for record in records if _is_usable(record, objectives)])
    worst_last = sorted(usable, key=lambda one: [one[1].get(VIOLATION, 0.0), *(o.cost(one[1]) for o in objectives)])
    return [record for record, _ in worst_last]


def averaged(records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, Mapping[str, float]]]:
    """Each trial with its metrics, those of all that differ from it in their seed alone averaged."""
    alike: dict[str, list[TrialRecord]] = {}
    for record in records:
        alike.setdefault(_but_for_the_seed(record), []).append(record)
    return [(record, _mean(alike[_but_for_the_seed(record)])) for record in records]


def _but_for_the_seed(record: TrialRecord) -> str:
    if SEED not in record.values:
        return record.id
    return repr(sorted((name, repr(value)) for name, value in record.values.items() if name != SEED))


def _mean(alike: Sequence[TrialRecord]) -> Mapping[str, float]:
    if len(alike) == 1:
        return alike[0].metrics
    shared = set.intersection(*(set(record.metrics) for record in alike))
    return {name: sum(record.metrics[name] for record in alike) / len(alike) for name in shared}


def broken(record: TrialRecord) -> float:
    """How far a trial is beyond the search's constraints; 0: it keeps them, or there are none."""
    return record.metrics.get(VIOLATION, 0.0)


def pareto_front(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Finished trials that no other one dominates, best in the first objective first; of those that keep the
    constraints or, where none does, that break them least."""
    found = averaged(ranked(records, objectives))
    least = min((metrics.get(VIOLATION, 0.0) for _, metrics in found), default=0.0)
    usable = [(record, metrics) for record, metrics in found if metrics.get(VIOLATION, 0.0) == least]
    return [one for one, mine in usable if not any(dominates(other, mine, objectives) for _, other in usable)]


def _is_usable(record: TrialRecord, objectives: Sequence[Objective]) -> bool:
    return record.status == "finished" and all(o.cost(record.metrics) != float("inf") for o in objectives)


def prune_dominated(
    trials_folder: Path, records: Sequence[TrialRecord], objectives: Sequence[Objective]
) -> list[TrialRecord]:
    """Delete the checkpoints of finished trials that another one dominates: a long search must not fill the disk.

    The first trial's stays: it takes the recipe as it is, beside which the result is measured.

    Returns:
        Those that none of them dominates.
    """
    front = pareto_front(records, objectives)
    kept = {record.id for record in front} | {record.id for record in records if record.number == RECIPE}
    for record in records:
        if record.status == "finished" and record.id not in kept:
            shutil.rmtree(trials_folder / record.id, ignore_errors=True)
    return front


def table(
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    model: str,
    scheme: str,
    constraints: Sequence[Constraint] = (),
) -> list[dict[str, Any]]:
    """Rows for the summary table: the best trials, then those stopped early, then failures with their errors."""
    names = [*(objective.metric for objective in objectives), *(constraint.metric for constraint in constraints)]
    metrics = list(dict.fromkeys(names))
    best = ranked(records, objectives)
    failed = [record for record in records if record.status == "failed"]
    others = [record for record in records if record not in best and record not in failed]
    others.sort(key=lambda record: [objective.cost(record.metrics) for objective in objectives])
    shown = [*[*best, *others][:SHOWN_BEST], *failed[:SHOWN_FAILED]]
    return [_row(record, metrics, model, scheme) for record in shown]


def _row(record: TrialRecord, metrics: Sequence[str], model: str, scheme: str) -> dict[str, Any]:
    values: Mapping[str, Any] = {"scheme": scheme} | record.values
    row: dict[str, Any] = {"variant": record.name, "model": model, "scheme": values["scheme"]}
    for metric in metrics:
        row |= {key: value for key, value in record.metrics.items() if _belongs(key, metric)}
    if VIOLATION in record.metrics:
        row["constraints"] = "broken" if broken(record) else "kept"
    row |= {name: _rounded(value) for name, value in values.items() if name != "scheme"}
    row |= {"status": record.status, "step": record.step} | ({"note": record.note} if record.note else {})
    return row | ({"error": record.error} if record.error else {})


def _belongs(key: str, metric: str) -> bool:
    return key in (metric, f"{metric}_ci_low", f"{metric}_ci_high")


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
