"""How trials ended: a record on disk that outlives a crash, and the questions asked of it (best, front, table)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgequant.files import write_atomically
from edgequant_tune.objectives import Objective, dominates
from edgequant_tune.trial import TRIALS_FOLDER

Status = Literal["finished", "stopped", "failed", "unfinished"]
RECORD = "trials.json"
SHOWN_BEST = 20
SHOWN_FAILED = 5


@dataclass(frozen=True, kw_only=True)
class Outcome:
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


def write_record(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """All trials so far, as `trials.json` in the search's folder."""
    write_atomically(folder / RECORD, json.dumps([asdict(outcome) for outcome in outcomes], indent=1, default=str))


def read_record(folder: Path) -> list[Outcome]:
    """What `write_record` wrote; nothing yet is an empty list."""
    path = folder / RECORD
    return [Outcome(**entry) for entry in json.loads(path.read_text())] if path.is_file() else []


def ranked(outcomes: Sequence[Outcome], objectives: Sequence[Objective]) -> list[Outcome]:
    """Finished trials with usable objectives, best first; the first objective decides, the others break ties."""
    usable = [outcome for outcome in outcomes if _is_usable(outcome, objectives)]
    return sorted(usable, key=lambda outcome: [objective.cost(outcome.metrics) for objective in objectives])


def pareto_front(outcomes: Sequence[Outcome], objectives: Sequence[Objective]) -> list[Outcome]:
    """Finished trials that no other one beats, best in the first objective first."""
    usable = ranked(outcomes, objectives)
    return [one for one in usable if not any(dominates(other.metrics, one.metrics, objectives) for other in usable)]


def _is_usable(outcome: Outcome, objectives: Sequence[Objective]) -> bool:
    return outcome.status == "finished" and all(o.cost(outcome.metrics) != float("inf") for o in objectives)


def drop_beaten(folder: Path, outcomes: Sequence[Outcome], objectives: Sequence[Objective]) -> None:
    """Delete the checkpoints of finished trials that another one beats: a long search must not fill the disk."""
    kept = {outcome.id for outcome in pareto_front(outcomes, objectives)}
    for outcome in outcomes:
        if outcome.status == "finished" and outcome.id not in kept:
            shutil.rmtree(folder / TRIALS_FOLDER / outcome.id, ignore_errors=True)


def table(
    outcomes: Sequence[Outcome], objectives: Sequence[Objective], *, model: str, scheme: str
) -> list[dict[str, Any]]:
    """Rows for the closing table: the best trials, then those stopped early, then failures with their errors."""
    best = ranked(outcomes, objectives)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    others = [outcome for outcome in outcomes if outcome not in best and outcome not in failed]
    others.sort(key=lambda outcome: [objective.cost(outcome.metrics) for objective in objectives])
    shown = [*[*best, *others][:SHOWN_BEST], *failed[:SHOWN_FAILED]]
    return [_row(outcome, objectives, model, scheme) for outcome in shown]


def _row(outcome: Outcome, objectives: Sequence[Objective], model: str, scheme: str) -> dict[str, Any]:
    values: Mapping[str, Any] = {"scheme": scheme} | outcome.values
    row: dict[str, Any] = {"variant": outcome.name, "model": model, "scheme": values["scheme"]}
    for objective in objectives:
        row |= {key: value for key, value in outcome.metrics.items() if _belongs(key, objective.metric)}
    row |= {name: _rounded(value) for name, value in values.items() if name != "scheme"}
    row |= {"status": outcome.status, "step": outcome.step}
    return row | ({"error": outcome.error} if outcome.error else {})


def _belongs(key: str, metric: str) -> bool:
    return key in (metric, f"{metric}_ci_low", f"{metric}_ci_high")


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
