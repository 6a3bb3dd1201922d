"""A folder on every node for what its trials share; gone when the search ends."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.training.settings import TrainingSettings
from edgequant_tune.search_space import CALIBRATION, SCHEME
from edgequant_tune.space.composed_scheme import PARTS

if TYPE_CHECKING:
    from edgequant_tune.space.hyperparameter import Hyperparameter

OF_QAT_ALONE = {"distillation_weight"}  # a setting that a control has no use for, unless it is 0
# What changes the integers that PTQ chooses, or the text by which it does.
ROUNDED_WITH = {
    *(SCHEME, *PARTS, *CALIBRATION, "init_from", "sparsity", "sparsity_pattern"),
    *("sequence_length", "steps", "epochs", "max_tokens", "batch_size", "gradient_accumulation"),
}
# Where a start is kept on disk, so many trials have it on average, at the least; and no more starts are.
TRIALS_PER_START, MOST_STARTS = 2, 8


def node_folder(run_id: str) -> Path:
    """Where the trials of a search share what they need, on whichever node asks."""
    return Path(tempfile.gettempdir()) / f"edgequant-tune-{run_id}"


def shares_control(space: Sequence[Hyperparameter]) -> bool:
    """Whether all trials have the same control: nothing is searched that it is trained with."""
    trained_with = {field.name for field in fields(TrainingSettings)} - OF_QAT_ALONE | {"seed"}
    return not trained_with & {item.name for item in space}


def own_parts(space: Sequence[Hyperparameter], *, trials: int, replicates: int) -> tuple[str, ...]:
    """What each trial makes on its own: parts of which hardly two are the same, and which would fill the disk.

    Args:
        trials: of the search at most.
        replicates: seeds of each configuration.
    """
    control = () if shares_control(space) and replicates == 1 else ("control",)
    values = [item.listed() for item in space if item.name in ROUNDED_WITH]
    starts = math.inf if None in values else replicates * math.prod(len(listed or ()) for listed in values)
    return (
        control
        if starts <= max(1, min(MOST_STARTS, trials // TRIALS_PER_START))
        else (*control, "ptq-choice", "rounded")
    )


def delete_on_nodes(folder: Path) -> None:
    """Delete a folder on all nodes of the running Ray; one that does not answer keeps it."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    delete = ray.remote(num_cpus=0)(_delete)
    asked = [
        delete.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(folder)
        for node in ray.nodes()
        if node["Alive"]
    ]
    ray.wait(asked, num_returns=len(asked), timeout=30)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
