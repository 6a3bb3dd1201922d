"""Training on several GPUs: one process each, as torchrun or accelerate start them, or one GPU out of several.

transformers.Trainer by itself spreads a lone process over all visible GPUs by nn.DataParallel and multiplies the batch
by their number. Here an optimiser step sees what the settings say, however many GPUs share it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import distributed
from transformers import TrainingArguments

from edgequant.errors import UserError
from edgequant.training.settings import TrainingSettings

Value = TypeVar("Value")


def launched_processes() -> int:
    """How many processes torchrun or accelerate started for this training; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def is_main_process() -> bool:
    """Whether this is the process that shows progress, logs and saves: rank 0, or the only one."""
    return launched_processes() == 1 or int(os.environ.get("RANK", 0)) == 0


def from_main_process(compute: Callable[[], Value]) -> Value:
    """A value that rank 0 computes, such as a held-out loss, and all others get; every process has to call it.

    Args:
        compute: called on rank 0 alone; its value must be picklable where there are other processes.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return compute()
    values = [compute() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(values, src=0)
    return values[0]  # type: ignore[return-value]


def _leave_the_others() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


atexit.register(_leave_the_others)  # threads of gloo that outlive the interpreter abort the process


def pass_of_each_process(settings: TrainingSettings, processes: int) -> tuple[int, int]:
    """(sequences in a forward pass, passes of a step) of each process, so that all together do one step's work.

    Raises:
        UserError: neither the batch nor the passes divide among the processes.
    """
    if settings.batch_size % processes == 0:
        return settings.batch_size // processes, settings.gradient_accumulation
    if settings.gradient_accumulation % processes == 0:
        return settings.batch_size, settings.gradient_accumulation // processes
    raise UserError(
        f"training.batch_size {settings.batch_size} must be a multiple of the {processes} processes that share a step "
        f"(or training.gradient_accumulation {settings.gradient_accumulation}); use batch_size "
        f"{-(-settings.batch_size // processes) * processes}"
    )


def on_its_devices(arguments: TrainingArguments, device: torch.device) -> TrainingArguments:
    """Keep a lone process on the one device where the model lies, and say so where there are more.

    Args:
        arguments: made for this training; changed in place and returned.
        device: the model's.
    """
    if arguments.world_size > 1 or device.type != "cuda":
        return arguments
    arguments._n_gpu = 1
    if device.index is not None and arguments.device != device:  # Trainer takes the first GPU whatever was asked for
        torch.cuda.set_device(device)
        arguments.__dict__["_setup_devices"] = device
    visible = torch.cuda.device_count()
    if visible > 1:
        print(
            f"training: one of {visible} GPUs; all of them: torchrun --nproc_per_node {visible} -m edgequant ...",
            flush=True,
        )
    return arguments
