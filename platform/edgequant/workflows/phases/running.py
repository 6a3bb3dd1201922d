"""Running a plan's phases: each unless it is done, with a row of the summary for each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgequant.evaluation.efficiency.timed_once import timed_once
from edgequant.workflows.phases.checks import PHASES
from edgequant.workflows.phases.ledger import Ledger
from edgequant.workflows.phases.plan import Plan
from edgequant.workflows.shipping import TimingPlan

Rows = list[dict[str, Any]]


def run_phases(
    name: str, plan: Plan, ledger: Ledger, timing: TimingPlan, rows: Rows, *, but: Sequence[str] = ()
) -> None:
    """All phases of one model but the report; adds a row of the summary for each as soon as it is done.

    A model that several of them measure is timed once.

    Args:
        but: phases to leave to another call.
    """
    with timed_once():
        for phase in PHASES:
            if phase in but:
                continue
            if phase in plan.phases and phase not in ("report", "compare", "adapt"):
                rows.append(done(name, phase, plan, ledger))
            if phase == "adapt":
                for order in plan.adapt:
                    rows.append(done(name, f"adapt-{order}", plan, ledger))
            if phase == "compare" and phase in plan.phases:
                rows.append(compared(name, plan, timing))


def done(name: str, phase: str, plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """Run a phase unless it is done; its row."""
    inputs = plan.inputs(phase)
    note = ledger.done(phase, inputs)
    skipped = note is not None
    if note is None:
        started = time.perf_counter()
        result = plan.steps[phase]()
        minutes = (time.perf_counter() - started) / 60
        place = result.checkpoint if result.checkpoint and Path(result.checkpoint).exists() else ""
        note = ledger.note(phase, inputs, run=result.run_id, result=place, minutes=minutes)
    return {"model": name, "phase": phase, "run": note.run, "minutes": None if skipped else note.minutes}


def compared(name: str, plan: Plan, timing: TimingPlan) -> dict[str, Any]:
    """Measure the orders side by side, write their table; its row."""
    from edgequant import tracking
    from edgequant.workflows.phases.orders import measure_orders, write_table

    started = time.perf_counter()
    rows = measure_orders(plan, name, timing)
    tracking.log_artifact(write_table(rows, plan.folder), f"orders/{name}")
    minutes = (time.perf_counter() - started) / 60
    return {"model": name, "phase": "compare", "run": None, "minutes": minutes}


def said_of_orders(plan: Plan) -> list[str]:
    """Lines on the orders for the summary: where the table is, and which order wins."""
    from edgequant.workflows.phases.orders import FILE

    file = plan.folder / FILE
    if not file.is_file() or "compare" not in plan.phases:
        return []
    last = file.read_text(encoding="utf-8").rstrip().splitlines()[-1]
    return [f"orders: {file}", *([last] if not last.startswith("|") else [])]


def reported(runs: Sequence[str], folder: Path, experiment: str) -> dict[str, Any]:
    """The report over the runs of all phases; its row."""
    from edgequant.workflows.report import report

    started = time.perf_counter()
    result = report(runs=",".join(dict.fromkeys(runs)), output=str(folder / "report"), experiment=experiment)
    return {"phase": "report", "run": result.run_id, "minutes": (time.perf_counter() - started) / 60}


def has_run(run_id: str) -> bool:
    """Whether a run is in the store, finished."""
    from edgequant import tracking

    try:
        return bool(tracking.client().get_run(run_id).info.status == "FINISHED")
    except Exception:  # the store's clients raise types of their own for a run that is not there
        return False


def delivered_metrics(runs: Sequence[str]) -> dict[str, float]:
    """The metrics of the model that the pipeline delivers: the first QAT checkpoint's."""
    from edgequant import tracking

    found = next(
        (each for run in runs if (each := tracking.client().get_run(run)).data.tags.get("edgequant.workflow") == "qat"),
        None,
    )
    return {} if found is None else tracking.details_of(found.info.run_id) | found.data.metrics
