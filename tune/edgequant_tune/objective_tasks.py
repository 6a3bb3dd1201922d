"""Which task an objective is a metric of, and so what a trial is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.domain_perplexity import DOMAIN_PERPLEXITY
from edgequant.evaluation.tasks.registry import known_tasks, owner_of
from edgequant_tune.objectives import Objective

ALWAYS_MEASURED = ("size", "train", "parity")


def check_objectives(objectives: Sequence[Objective]) -> None:
    """Refuse an objective that no task measures.

    Raises:
        UserError: names it, and what is measured.
    """
    for objective in objectives:
        group = objective.metric.partition("/")[0]
        if group not in ALWAYS_MEASURED and owner_of(objective.metric) is None:
            groups = [*(task.group for task in known_tasks()), *ALWAYS_MEASURED]
            known = ", ".join(f"{name}/..." for name in groups)
            raise UserError(
                f"objective must be a metric that some task measures, got {objective.metric!r}; use one of {known}"
            )


def trial_evaluation(evaluation: EvaluationSettings, objectives: Sequence[Objective]) -> EvaluationSettings:
    """What a trial is measured on: what its objectives need, and domain perplexity always."""
    metrics = [o.metric for o in objectives if o.metric.partition("/")[0] not in ALWAYS_MEASURED]
    owners = [DOMAIN_PERPLEXITY, *map(owner_of, metrics)]
    return replace(evaluation, tasks=tuple(dict.fromkeys(task.name for task in owners if task is not None)))
