"""What a version's run was asked to measure: where that is missing, its gate fails and is not passed over."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgequant.errors import UserError
from edgequant.evaluation.tasks.registry import COMPARISON_TASKS, DEFAULT_TASKS, QUALITY_TASKS, owner_of
from edgequant.evaluation.tasks.task import Task

if TYPE_CHECKING:
    from edgequant.evaluation.evidence_file import Evidence

UNSET = ("", "None", "none", "False", "false")
MEASURED_UNASKED = (
    {*DEFAULT_TASKS},
    {*COMPARISON_TASKS},
    {*QUALITY_TASKS},
)  # without data, such a run leaves tasks out and says so


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What decides which metrics a version has to have.

    Attributes:
        tasks: of its evaluation.
        data: names of the data sets that were there.
        settings: of its run by their full names, such as `export`, as text.
        variant: what made the checkpoint, such as `qat`.
        uncompared: that, and why, it was never compared with its baseline; empty where it was.
        unknown: that, and why, none of this is known; empty where it is.
    """

    tasks: Collection[str] = ()
    data: Collection[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    variant: str = ""
    uncompared: str = ""
    unknown: str = ""

    def why(self, metric: str) -> str:
        """What asked for a metric, in words; empty where nothing did."""
        if self.unknown:
            return self.unknown
        group = metric.partition("/")[0]
        if group == "size":
            return "every run measures sizes"
        if group == "deploy":
            return self._of_settings("device_profile") or (self._of_settings("export") if _is_size(metric) else "")
        if group == "guard":
            return self._of_settings("guard")
        if group == "against_baseline" or (group == "parity" and self.variant == "qat"):
            return self._of_settings("qat.max_task_loss")
        owner = owner_of(metric)
        return self._of_task(owner) if owner is not None else ""

    def _of_settings(self, name: str) -> str:
        value = self.settings.get(name, "")
        return "" if value in UNSET else f"{name} {value}"

    def _of_task(self, task: Task) -> str:
        if task.name not in self.tasks:
            return ""
        by_name = {*self.tasks} not in MEASURED_UNASKED
        there = not task.data or any(data_set.name in self.data for data_set in task.data)
        return f"evaluation.tasks has {task.name}" if by_name or there or self._of_settings("data_dir") else ""


NOTHING_ASKED = Asked()


def _is_size(metric: str) -> bool:
    return metric in ("deploy/size_gb", "deploy/reduction_vs_fp16")


def asked_of(evidence: Evidence | None) -> Asked:
    """What a version's workflow was asked for, as its evidence has it."""
    if evidence is None or evidence.asked is None:
        uncompared = "" if evidence is None else evidence.uncompared
        return Asked(unknown="the version's evidence does not say", uncompared=uncompared)
    settings = dict(evidence.asked)
    if settings.get("workflow") != "qat":
        settings.pop("qat.max_task_loss", None)  # trials of a search are QAT, and not compared with the baseline
    return Asked(
        tasks=_names(settings.get("evaluation.tasks", "")),
        data=() if evidence.conditions is None else tuple(evidence.conditions.data),
        settings=settings,
        variant=evidence.variant,
        uncompared=evidence.uncompared,
    )


def _names(text: str) -> tuple[str, ...]:
    try:
        found = ast.literal_eval(text) if text else ()
        return (found,) if isinstance(found, str) else tuple(str(name) for name in found)
    except (ValueError, SyntaxError, TypeError):
        raise UserError(f"evaluation.tasks of the version's evidence must be a list of names, got {text!r}") from None
