"""How much memory a trial needs, from the model's sizes and the batch; and what to do when it was not enough."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgequant import models
from edgequant.training.settings import TrainingSettings

FLOAT = 4  # bytes of a weight, a gradient and each of AdamW's two moments in training
# The model as it came, the one that is trained, its gradients, two moments, and the control or the integers beside it.
COPIES = {"qat": 6, "finetune": 2.5}
PROCESS = 1.2e9  # Python, torch and transformers
ACTIVATIONS = 40  # values that a layer keeps for the backward pass, per token and hidden unit; attention's included
LOGITS = 4  # copies of a batch's logits: the student's, the teacher's, and both as distributions
LACKS_MEMORY = re.compile(r"out ?of ?memory|low on memory|not enough memory|can't allocate memory|MemoryError", re.I)


def estimated_bytes(
    source: str | models.ModelSource, training: TrainingSettings, method: str, *, on_gpu: bool
) -> float | None:
    """Host memory of a trial; None where the model's sizes cannot be told without fetching it.

    Args:
        training: with the largest batch and sequence that a trial may have.
        on_gpu: copies beyond the first two are on the GPU then, and so are activations.
    """
    sizes = models.stated_sizes(source)
    if sizes is None:
        return None
    weights = FLOAT * sizes.parameters
    if on_gpu:
        return PROCESS + 2 * weights
    tokens = training.batch_size * training.sequence_length
    kept = tokens * sizes.hidden * sizes.layers * ACTIVATIONS
    if training.gradient_checkpointing:
        kept = tokens * sizes.hidden * (sizes.layers + ACTIVATIONS)
    return PROCESS + COPIES[method] * weights + FLOAT * (kept + LOGITS * tokens * sizes.vocabulary)


def lacks_memory(error: BaseException | str) -> bool:
    """Whether an error, or the text of one, says that memory ran out: a GPU's, the machine's, or Ray's monitor's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return LACKS_MEMORY.search(str(error)) is not None


def halved(training: TrainingSettings) -> TrainingSettings | None:
    """The same sequences in every step, in forward passes of at most half as many; None where one is one sequence."""
    size = training.batch_size
    smaller = next((n for n in range(size // 2, 0, -1) if size % n == 0), None)
    if smaller is None:
        return None
    return replace(
        training, batch_size=smaller, gradient_accumulation=training.gradient_accumulation * (size // smaller)
    )


def searched_most(training: TrainingSettings, values: Mapping[str, float]) -> TrainingSettings:
    """The training that needs most, of what a search may come to.

    Args:
        values: the largest that is searched, by name.
    """
    mattering: dict[str, Any] = {
        name: int(value) for name, value in values.items() if name in ("batch_size", "sequence_length")
    }
    return replace(training, **mattering)
