"""What every workflow that runs a model is told about its run. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from edgequant.models.devices import check_device_name, check_dtype
from edgequant.settings_checks import check_seed, check_types


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where, on which data and under which name a workflow runs: on the command line and in recipes without a prefix.

    Raises:
        UserError: a device or compute type that does not exist, a seed out of range; names the value and those that do.
    """

    data_dir: str | None = None
    """Folder with WikiText-2, BoolQ and SQuAD in their official formats (default: $EDGEQUANT_DATA)."""

    device: str = "auto"
    """Where models run: auto, cpu, cuda or cuda:N."""

    dtype: str = "auto"
    """Compute type while measuring: auto, float32, bfloat16 or float16."""

    seed: int = 0
    """Order of the text, initial values, draws of questions."""

    resume: bool = False
    """Continue the newest interrupted run of this configuration."""

    experiment: str = "edgequant"
    """MLflow experiment, unless `mlflow run` names one."""

    def __post_init__(self) -> None:
        check_types(self)
        check_device_name(self.device)
        check_dtype(self.dtype)
        check_seed(self.seed)


def configuration(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow's arguments as they stand in recipes, the run settings beside the others instead of in a group."""
    own = {name: value for name, value in arguments.items() if name != "run"}
    return own | asdict(arguments["run"])


class WorkflowResult(NamedTuple):
    """What a workflow called from Python returns.

    Attributes:
        run_id: of the MLflow run.
        metrics: of the model that the workflow delivers; empty where it delivers none.
        checkpoint: folder or file that it wrote, an MLflow URI, or None.
        rows: the summary table, one mapping per model.
    """

    run_id: str
    metrics: dict[str, float]
    checkpoint: str | None
    rows: list[dict[str, Any]]
