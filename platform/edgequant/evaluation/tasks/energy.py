"""The task `energy`: what greedy decoding draws, where the hardware tells."""

from __future__ import annotations

from collections.abc import Mapping

from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.tasks.latency import timing_protocol
from edgequant.evaluation.tasks.task import Evaluation, Metric, Rows, Task

UNMEASURED = "energy was left out: neither RAPL nor NVML tells, or codecarbon is not installed"


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    from edgequant.evaluation.efficiency.energy import energy_metrics

    protocol = timing_protocol(model, settings)
    metrics = energy_metrics(
        model,
        prompt_length=protocol.prompt_lengths[0],
        new_tokens=protocol.new_tokens,
        repetitions=settings.latency_repetitions,
        seed=settings.seed,
    )
    return Evaluation(metrics, notes=[] if metrics else [UNMEASURED])


ENERGY = Task(
    name="energy",
    kind="efficiency",
    score=_score,
    protocol="Energy of greedy decoding as RAPL or NVML measure it, per decoded token; nothing where neither does.",
    display={
        "energy/joules_per_token": Metric("energy joules per token", "", "lower", digits=4, prominence="detail"),
    },
    by_default=False,
    comparison=False,
)
