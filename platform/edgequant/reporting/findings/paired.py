"""Measured models compared item by item with what they are to be measured by: better, worse, or undecided."""

from __future__ import annotations

from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.harm import Loss, family, losses
from edgequant.reporting.comparison import Comparison, Pair
from edgequant.reporting.findings.artifacts import Artifacts
from edgequant.tracking.search import FinishedRun

REFERENCES = ("ptq", "control-ptq", "control")  # of QAT, beside the baseline
OTHER_ITEMS = "not scored on the same items"


def paired(comparison: Comparison, kept: ItemTables) -> list[Pair]:
    """Every row against the baseline of its model, and QAT against PTQ and the control of its own run as well.

    A baseline of the row's own run comes before one of another run, which may have been scored on other items.
    """
    found = []
    for row, run in enumerate(comparison.runs):
        for reference in _references(comparison, row):
            same, reason = kept.losses(reference, run)
            found.append(Pair(row, reference.tags.get("edgequant.variant", ""), same, reason))
    return found


def siblings(comparison: Comparison, row: int) -> dict[str, FinishedRun]:
    """What the row's workflow run measured of the same model, by variant; of several schemes those of the row's own."""
    own, scheme = comparison.runs[row], comparison.runs[row].tags.get("edgequant.scheme")
    found: dict[str, FinishedRun] = {}
    for run, owner in comparison.measured:
        same_model = run.tags.get("edgequant.model") == own.tags.get("edgequant.model")
        if owner.id != comparison.owners[row].id or not same_model or run.id == own.id:
            continue
        if run.tags.get("edgequant.scheme") in (scheme, "none", "", None):
            found[run.tags.get("edgequant.variant", "")] = run
    return found


def _references(comparison: Comparison, row: int) -> list[FinishedRun]:
    run = comparison.runs[row]
    if run.tags.get("edgequant.variant") == "baseline":
        return []
    near = siblings(comparison, row)
    baseline = near.get("baseline") or _baseline_of(comparison, row)
    found = [baseline] if baseline else []
    if run.tags.get("edgequant.variant") == "qat":
        found += [near[name] for name in REFERENCES if name in near]
    return found


def _baseline_of(comparison: Comparison, row: int) -> FinishedRun | None:
    model = comparison.rows[row]["model"]
    return next(
        (
            run
            for run, other in zip(comparison.runs, comparison.rows, strict=True)
            if other["variant"] == "baseline" and other["model"] == model
        ),
        None,
    )


class ItemTables:
    """Item tables of runs, compared."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    def losses(self, reference: FinishedRun, run: FinishedRun) -> tuple[list[Loss], str]:
        """By metric, and why there are none."""
        before, after = self.of(reference), self.of(run)
        shared = [table for table in before if table in after]
        found: list[Loss] = []
        for table in shared:
            try:
                one, other = {table: before[table]}, {table: after[table]}
                found += losses(one, other, perplexity_margin=0.0, task_margin=0.0)
            except (UserError, KeyError, TypeError, ValueError):  # other items, or a table of another version
                continue
        reason = "" if found else OTHER_ITEMS if shared else "scores by item were not kept"
        return family(found), reason

    def of(self, run: FinishedRun) -> dict[str, list[dict[str, Any]]]:
        """By name, those that comparisons look at."""
        return self._artifacts.items(run.id)
