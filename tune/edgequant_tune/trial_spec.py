"""What all trials of a search share, which a Ray worker gets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.latency import LATENCY
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.shipping import TimingPlan
from edgequant_tune.objectives import Constraint
from edgequant_tune.search_space import BASE, SCHEME, SEED, with_values

if TYPE_CHECKING:
    from edgequant.training.shared_parts import SharedParts

SEARCHED = ("calibration", "training", "qat", "lora")  # settings whose fields may be searched

UNTIMED = TimingPlan(left_out="no objective or constraint asks for it")

OnReport = Callable[[int, dict[str, float]], None]
# (a trial's spec, its folder, what to call with steps done and metrics) to metrics and a checkpoint's folder; see
# train_candidate.qat_candidate.
TrainCandidate = Callable[["TrialSpec", Path, OnReport], tuple[Mapping[str, float], Path]]


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What all trials of a search share; Ray pickles it for its workers, which work elsewhere: paths are absolute.

    Attributes:
        train: trains one candidate; a function of a module, since Ray pickles it by reference.
        training, qat, calibration, lora: a trial replaces the searched fields.
        evaluation: what a trial is measured on.
        run: data, by its absolute path; device; compute type while measuring; and seed.
        folder: the option `output`; of a search that runs (`SearchSpec.on`), its own folder therein.
        constraints: what a trial has to keep to win.
        timing: how what ships of a qat trial is timed, if it is; its size is always told.
        base: weights under the adapters of a finetune trial: floating-point, or bitsandbytes' (QLoRA).
        reported: tasks that the winner is measured on, whose texts no trial may be trained on.
        node_folder: on every node, what its trials share: model, tokens, the integers of PTQ, the control.
        own: parts that each trial makes on its own, since hardly two trials have the same (`node_folder.own_parts`).
        storage: address of an object store that takes the checkpoints, where the nodes share no folder.
        family: the name by which what is made of the model goes, which the address of a run's checkpoint does not say.
        threads: cores that a trial keeps to while its times are measured.
        rungs: steps at which trials are compared in training; none: no trial is stopped.
        rung_text: data set on whose loss they are.
    """

    train: TrainCandidate
    model: str
    scheme: str
    dataset: str
    training: TrainingSettings
    qat: QatSettings
    calibration: CalibrationSettings
    lora: LoraSettings
    evaluation: EvaluationSettings
    run: RunSettings
    folder: Path
    rungs: tuple[int, ...]
    constraints: tuple[Constraint, ...] = ()
    timing: TimingPlan = UNTIMED
    base: str = "float"
    reported: tuple[str, ...] = ()
    threads: int = 1
    rung_text: str | None = None
    storage: str | None = None
    node_folder: Path | None = None
    own: tuple[str, ...] = ()
    family: str = ""

    @property
    def is_timed(self) -> bool:
        """Whether a trial measures times, for which it has to be alone on its node."""
        return not self.timing.left_out or LATENCY.name in self.evaluation.tasks

    @property
    def shared(self) -> SharedParts:
        """What trials of one node make once."""
        from edgequant.training.shared_parts import SharedParts

        return SharedParts(self.node_folder, own=self.own)

    @property
    def trials_folder(self) -> Path:
        """Where the checkpoints of trials lie, each in a folder named by its id."""
        return self.folder / "trials"

    @property
    def work_folder(self) -> Path:
        """Where the trials work: on their own node where what they leave goes to an object store."""
        return self.trials_folder if self.storage is None else Path(tempfile.gettempdir()) / f"eq-{self.folder.name}"

    def with_values(self, values: Mapping[str, Any]) -> TrialSpec:
        """The same trial with these hyperparameters."""
        groups = {name: with_values(getattr(self, name), values) for name in SEARCHED}
        given = {name: values.get(name, getattr(self, name)) for name in (SCHEME, BASE)}
        run = replace(self.run, seed=values.get(SEED, self.run.seed))
        return replace(self, run=run, **given, **groups)
