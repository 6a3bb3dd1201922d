"""Room on the disk for training checkpoints: looked at before the first step, told when it runs out after all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from edgequant.disk.faults import check_room, writing
from edgequant.training.settings import TrainingSettings

WEIGHT_BYTES, OPTIMIZER_BYTES = 4, 8  # of a parameter in float32: itself; AdamW's two moments


@contextmanager
def checkpoints_in(folder: Path, model: nn.Module, settings: TrainingSettings) -> Iterator[None]:
    """Around a training that writes its checkpoints into a folder.

    Raises:
        DiskError: as `check_checkpoint_room`; or the disk was full, or failed, in the midst of it.
    """
    check_checkpoint_room(folder, model, settings)
    with writing(folder):
        yield


def check_checkpoint_room(folder: Path, model: nn.Module, settings: TrainingSettings) -> None:
    """Refuse a training whose first checkpoint plainly will not fit: weights, and the optimiser's two moments.

    Args:
        settings: with their steps settled.

    Raises:
        DiskError: names folder, bytes needed and bytes free.
    """
    if not settings.checkpoint_interval:
        return
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kept = trained if hasattr(model, "peft_config") else sum(parameter.numel() for parameter in model.parameters())
    check_room(folder, WEIGHT_BYTES * kept + OPTIMIZER_BYTES * trained, "a training checkpoint")
