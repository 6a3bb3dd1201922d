"""How trials ended: a record on disk that outlives a crash, and the questions asked of it (best, front, table)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgequant.files import write_atomically
from edgequant_tune.objectives import VIOLATION, Constraint, Objective, dominates

Status = Literal["finished", "stopped", "failed", "unfinished"]
RECORDS_FILE = "trials.json"
SHOWN_BEST = 20
SHOWN_FAILED = 5


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial: the hyperparameters tried and what came of them.

    Metrics of `finished` trials are those of the checkpoint reloaded from disk; of a `stopped` one, those of training.
    """

    number: int
    id: str
    values: dict[str, Any]
    status: Status
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    error: str | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        return f"trial {self.number}"


def write_records(folder: Path, records: Sequence[TrialRecord]) -> None:
    """All trials so far, as `trials.json` in the search's folder."""
    write_atomically(folder / RECORDS_FILE, json.dumps([asdict(record) for record in records], indent=1, default=str))


def read_records(folder: Path) -> list[TrialRecord]:
    """What `write_records` wrote; nothing yet is an empty list."""
    path = folder / RECORDS_FILE
    return [TrialRecord(**entry) for entry in json.loads(path.read_text())] if path.is_file() else []


def ranked(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Finished trials with usable objectives, best first; the first objective decides, the others break ties.

    Those that break a constraint come behind all that keep them, the least broken first.
    """
    usable = [record for record in records if _is_usable(record, objectives)]
    return sorted(
        usable, key=lambda record: [broken(record), *(objective.cost(record.metrics) for objective in objectives)]
    )


def broken(record: TrialRecord) -> float:
    """How far a trial is beyond the search's constraints; 0: it keeps them, or there are none."""
    return record.metrics.get(VIOLATION, 0.0)


def pareto_front(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Finished trials that no other one dominates, best in the first objective first; of those that keep the
    constraints or, where none does, that break them least."""
    usable = ranked(records, objectives)
    usable = [record for record in usable if broken(record) == broken(usable[0])]
    return [one for one in usable if not any(dominates(other.metrics, one.metrics, objectives) for other in usable)]


def _is_usable(record: TrialRecord, objectives: Sequence[Objective]) -> bool:
    return record.status == "finished" and all(o.cost(record.metrics) != float("inf") for o in objectives)


def prune_dominated(trials_folder: Path, records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> None:
    """Delete the checkpoints of finished trials that another one dominates: a long search must not fill the disk."""
    kept = {record.id for record in pareto_front(records, objectives)}
    for record in records:
        if record.status == "finished" and record.id not in kept:
            shutil.rmtree(trials_folder / record.id, ignore_errors=True)


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
    row |= {"status": record.status, "step": record.step}
    return row | ({"error": record.error} if record.error else {})


def _belongs(key: str, metric: str) -> bool:
    return key in (metric, f"{metric}_ci_low", f"{metric}_ci_high")


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
