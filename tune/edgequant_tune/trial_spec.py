"""What all trials of a search share, which a Ray worker gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.shipping import TimingPlan
from edgequant_tune.objectives import Constraint
from edgequant_tune.search_space import SCHEME, with_values

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
        rungs: steps at which trials are compared in training; none: no trial is stopped.
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

    @property
    def trials_folder(self) -> Path:
        """Where the trials work, each in a folder named by its id."""
        return self.folder / "trials"

    def with_values(self, values: Mapping[str, Any]) -> TrialSpec:
        """The same trial with these hyperparameters."""
        groups = {name: with_values(getattr(self, name), values) for name in SEARCHED}
        return replace(self, scheme=values.get(SCHEME, self.scheme), **groups)
