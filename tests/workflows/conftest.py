"""Settings with which a workflow on `tiny` takes seconds."""

import pytest

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings


@pytest.fixture(scope="session")
def quick() -> EvaluationSettings:
    """Domain perplexity on one window and a short latency measurement."""
    return EvaluationSettings(
        tasks=("domain_perplexity", "latency"),
        limit=20,
        window=256,
        latency_prompt_lengths=(8,),
        latency_batch_sizes=(1,),
        latency_methods=("generate",),
        latency_new_tokens=16,  # of fewer, the timer's noise is as long as they are
        latency_repetitions=2,
        latency_warmup=0,
        bootstrap_resamples=20,
    )


@pytest.fixture(scope="session")
def short() -> TrainingSettings:
    """A handful of steps, in float32."""
    return TrainingSettings(steps=6, batch_size=2, sequence_length=64, learning_rate=2e-3, precision="float32")
