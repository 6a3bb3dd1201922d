"""What a fine-tuning learns, and what its best state is chosen by: validation text, which nothing is trained on."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import EvaluationData
    from edgequant.models.loading import LoadedModel
    from edgequant.training.settings import TrainingSettings
    from edgequant.training.trainer import Anchor
    from edgequant.training.watch import Watch
    from edgequant.workflows.settings import RunSettings
    from edgequant.workflows.steps.sequences import Split


def text_of(
    dataset: str,
    loaded: LoadedModel,
    training: TrainingSettings,
    data: EvaluationData,
    run: RunSettings,
    *,
    beside: bool = True,
) -> Split:
    """Rows to train on, and rows to validate on.

    Args:
        loaded: writes what is replayed of its own; `beside`: as `split_sequences`.

    Raises:
        UserError: as `split_sequences`.
    """
    from edgequant.workflows.steps.held_out import set_apart
    from edgequant.workflows.steps.sequences import split_sequences

    device = str(loaded.model.device)
    needed = training.wanted_sequences(device.partition(":")[0])
    return split_sequences(
        dataset, loaded.tokenizer, training.sequence_length, data, run.data_dir, seed=run.seed, model=loaded.model,
        needed=needed, beside=beside, set_apart=partial(set_apart, device=device),
    )  # fmt: skip


def anchor_of(text: Split, before: LoadedModel, trained: LoadedModel) -> Anchor | None:
    """What keeps a model from forgetting on rows that it wrote itself: there it follows its own earlier predictions,
    not the words. None where there are no such rows.

    Args:
        before: the model as it came; where that is the very one that is going to be trained, a copy is followed.
    """
    from edgequant.models.same_function.integers_of_bitsandbytes import hold_layout
    from edgequant.training.trainer import Anchor

    if not bool(text.generated.any()):
        return None
    model = before.model
    if model is trained.model:
        model = copy.deepcopy(model)
        hold_layout(model)  # it computes as in training
    return Anchor(model.requires_grad_(False).eval(), text.generated)


def watch_of(text: Split, training: TrainingSettings) -> Watch | None:
    """What training looks at; None where the text was too short to spare any."""
    from edgequant.training.watch import Watch, rows_to_watch

    if not len(text.validation):
        return None
    count = rows_to_watch(training, len(text.validation), 1, taught=False)
    return Watch(texts={"validation": text.validation[:count]}, batch_size=training.batch_size)
