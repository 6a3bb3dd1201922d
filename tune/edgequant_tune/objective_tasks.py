"""Which evaluation measures an objective, and so what a trial is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant_tune.objectives import Objective

MEASURE_OF = {
    "domain": "domain_perplexity",
    "wikitext2": "perplexity",
    "boolq": "boolq",
    "squad": "squad",
    "domain_qa": "domain_qa",
    "latency": "latency",
    "energy": "energy",
}
ALWAYS_MEASURED = ("size", "train", "parity")


def check_objectives(objectives: Sequence[Objective]) -> None:
    """Refuse an objective that no evaluation measures.

    Raises:
        UserError: names it, and what is measured.
    """
    for objective in objectives:
        group = objective.metric.partition("/")[0]
        if group not in MEASURE_OF and group not in ALWAYS_MEASURED:
            known = ", ".join(f"{name}/..." for name in (*MEASURE_OF, *ALWAYS_MEASURED))
            raise UserError(f"objective {objective.metric!r} is measured by nothing; expected one of {known}")


def trial_evaluation(evaluation: EvaluationSettings, objectives: Sequence[Objective]) -> EvaluationSettings:
    """What a trial is measured on: what its objectives need, and domain perplexity always."""
    groups = ["domain", *(objective.metric.partition("/")[0] for objective in objectives)]
    measures = dict.fromkeys(MEASURE_OF[group] for group in groups if group in MEASURE_OF)
    return replace(evaluation, measures=tuple(measures))
