"""A search, fully specified and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgequant import models
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.settings_checks import check_type
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant_tune.objective_tasks import goals_of, trial_evaluation, trial_timing
from edgequant_tune.objectives import Objective
from edgequant_tune.search_space import SCHEME, Space, read_space, searchable, with_values
from edgequant_tune.train_candidate import finetune_candidate, qat_candidate
from edgequant_tune.trial_spec import SEARCHED, TrialSpec

# Trials are compared at a quarter and at a half of the longest training, and the worse half is stopped: earlier, in the
# warm-up of the learning rate, a comparison says little.
REDUCTION_FACTOR = 2
RUNGS = 2
WORTH_HALVING = 8  # trials; with fewer, each one's result is worth more than the time it takes
# What changes the meaning of a loss, so that trials cannot be compared by the loss in the middle of training.
INCOMPARABLE = ("sequence_length",)
DEVICES = ("auto", "cpu", "cuda")

NUMBERS: dict[str, Any] = {
    "trials": int,
    "concurrent_trials": int | None,
    "time_budget_minutes": float | None,
    "cpus_per_trial": float,
    "gpus_per_trial": float,
}

Method = Literal["qat", "finetune"]


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """A search, fully specified; its attributes are named as the options of `tune`.

    Attributes:
        model_name: the model's short name.
        evaluation: what the best trial is measured on.
        concurrent_trials: trials at a time at most; None: as many as fit.
        cpus_per_trial, gpus_per_trial: a fraction of a GPU shares it.

    Raises:
        UserError: a number that is out of its range; names the option, its value and what was expected.
    """

    trial: TrialSpec
    model_name: str
    method: Method
    space: Space
    objectives: tuple[Objective, ...]
    trials: int
    time_budget_minutes: float | None
    concurrent_trials: int | None
    cpus_per_trial: float
    gpus_per_trial: float
    evaluation: EvaluationSettings

    def __post_init__(self) -> None:
        for option in ("trials", "concurrent_trials", "time_budget_minutes", "cpus_per_trial", "gpus_per_trial"):
            check_type(option, getattr(self, option), NUMBERS[option])
        _check("trials", self.trials, self.trials >= 1, "at least 1")
        at_once, minutes = self.concurrent_trials, self.time_budget_minutes
        _check("concurrent_trials", at_once, at_once is None or at_once >= 1, "at least 1, or none")
        _check("time_budget_minutes", minutes, minutes is None or minutes > 0, "above 0, or none")
        _check("cpus_per_trial", self.cpus_per_trial, self.cpus_per_trial > 0, "above 0")
        _check("gpus_per_trial", self.gpus_per_trial, self.gpus_per_trial >= 0, "0 or more")
        _check_device(self.trial.run.device)

    @classmethod
    def from_options(
        cls,
        *,
        model: str,
        method: Method,
        scheme: str,
        dataset: str,
        space: str | Mapping[str, Any] | None,
        objectives: Sequence[str],
        trials: int,
        time_budget_minutes: float | None,
        scheduler: Literal["auto", "asha", "none"],
        concurrent_trials: int | None,
        cpus_per_trial: float,
        gpus_per_trial: float,
        training: TrainingSettings,
        qat: QatSettings,
        calibration: CalibrationSettings,
        lora: LoraSettings,
        evaluation: EvaluationSettings,
        output: str,
        run: RunSettings,
        constraints: Sequence[str] = (),
        device_profile: str | None = None,
    ) -> SearchSpec:
        """The search that the options of `tune` describe; nothing is loaded, everything that can be is checked.

        Raises:
            UserError: names the option, its value and what was expected.
        """
        own = (QatSettings, CalibrationSettings) if method == "qat" else (LoraSettings,)
        searched = read_space(space or method, (TrainingSettings, *own), with_scheme=method == "qat")
        goals, bounds = goals_of(objectives, constraints, method, device_profile)
        halving = _halving(scheduler, searched, goals, trials)
        source = models.resolve(model)  # whether a hub's is within reach is asked once, with everything else
        spec = cls(
            trial=TrialSpec(
                train=qat_candidate if method == "qat" else finetune_candidate,
                model=source.location if source.kind in ("folder", "gguf") else model,
                scheme=scheme if method == "qat" else "none",
                dataset=_absolute_dataset(dataset),
                training=training,
                qat=qat,
                calibration=calibration,
                lora=lora,
                evaluation=trial_evaluation(evaluation, (*goals, *bounds)),
                run=replace(run, data_dir=_absolute_data_dir(run.data_dir)),
                folder=_absolute(output),
                rungs=_rungs(_longest(searched, training)) if halving else (),
                constraints=bounds,
                timing=trial_timing((*goals, *bounds), device_profile, cpus_per_trial),
            ),
            model_name=source.name,
            method=method,
            space=searched,
            objectives=goals,
            trials=trials,
            time_budget_minutes=time_budget_minutes,
            concurrent_trials=concurrent_trials,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            evaluation=evaluation,
        )
        _check_ends(spec)
        return spec

    def on(self, resources: Mapping[str, float], run_id: str) -> SearchSpec:
        """The same search as a cluster runs it: the GPUs that it has, the device of the trials, the run's own folder.

        Args:
            resources: Ray's: what there is of "CPU" and "GPU".

        Raises:
            UserError: a trial asks for more than there is.
        """
        cpus = resources.get("CPU", 0)
        if self.cpus_per_trial > cpus:
            raise UserError(
                f"cpus_per_trial must be at most the {cpus:g} CPUs that there are, got {self.cpus_per_trial:g}"
            )
        gpus = _granted(self.gpus_per_trial, self.trial.run.device, resources.get("GPU", 0))
        run = replace(self.trial.run, device="cuda" if gpus else "cpu")
        trial = replace(self.trial, run=run, folder=self.trial.folder / run_id)
        return replace(self, trial=trial, gpus_per_trial=gpus)

    def check_machine(self) -> None:
        """Refuse a device that is not there, where Ray would run on this machine alone.

        Raises:
            UserError: names it.
        """
        elsewhere = os.environ.get("RAY_ADDRESS") or Path("/tmp/ray/ray_current_cluster").exists()
        if not elsewhere:
            models.check_device(self.trial.run.device)

    @property
    def longest_training(self) -> int:
        """Steps of the longest training that the space allows."""
        return _longest(self.space, self.trial.training)

    @property
    def recipe(self) -> dict[str, Any] | None:
        """Hyperparameters of the first trial: the settings without any search, so that the gain is seen.

        None where the search could not come to them.
        """
        given: dict[str, Any] = {SCHEME: self.trial.scheme}
        for group in (getattr(self.trial, name) for name in SEARCHED):
            given |= {name: getattr(group, name) for name in searchable(type(group))}
        found = {item.name: given[item.name] for item in self.space if item.contains(given[item.name])}
        return found if len(found) == len(self.space) else None


# -------------------------------------------------------------------------------------------------------------- checks


def _check(option: str, value: float | None, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"{option} must be {expected}, got {value}")


def _check_device(device: str) -> None:
    if device not in DEVICES:
        hint = "; Ray gives each trial its GPU, of those that $CUDA_VISIBLE_DEVICES names" if ":" in device else ""
        raise UserError(f"device must be one of {', '.join(DEVICES)}, got {device!r}{hint}")


def _halving(scheduler: str, space: Space, objectives: Sequence[Objective], trials: int) -> bool:
    incomparable = [item.name for item in space if item.name in INCOMPARABLE]
    if scheduler == "asha" and incomparable:
        raise UserError(
            f"scheduler asha cannot compare the losses of trials that differ in {incomparable[0]}; use none"
        )
    by_itself = len(objectives) == 1 and not incomparable and trials >= WORTH_HALVING
    return scheduler == "asha" or (scheduler == "auto" and by_itself)


def _check_ends(spec: SearchSpec) -> None:
    """The ends of every range must be possible settings, and every scheme must fit the model."""
    from edgequant.workflows.validate import validate

    trial = spec.trial
    for item in spec.space:
        for value in item.values:
            for name in SEARCHED:
                with_values(getattr(trial, name), {item.name: value})  # checks itself
    if spec.method == "finetune":
        if "learning_rate" not in {item.name for item in spec.space}:
            trial.training.known_rate  # noqa: B018 - refuses `auto`
        validate(trial.model, trial.dataset, self_generated=False)
        return
    names = {item.name: item.values for item in spec.space}
    # What is searched is not what the settings say: a trial checks it.
    training = None if {"distillation_weight", "sequence_length"} & {*names} else trial.training
    schemes = ",".join(names.get(SCHEME, (trial.scheme,)))
    settings: dict[str, Any] = {"training": training, "qat": trial.qat, "calibration": trial.calibration}
    validate(trial.model, trial.dataset, schemes=schemes, evaluation=trial.evaluation, **settings)


def _granted(wanted: float, device: str, available: float) -> float:
    """GPUs of one trial."""
    if device == "cuda" and (not available or not wanted):
        raise UserError(f"device cuda with gpus_per_trial {wanted:g} on {available:g} GPUs; use auto or cpu")
    if device == "cpu" or not available:
        return 0.0
    if wanted > available:
        raise UserError(f"gpus_per_trial must be at most the {available:g} GPUs that there are, got {wanted:g}")
    return wanted


# ------------------------------------------------------------------------------------------------------- what follows


def _longest(space: Space, training: TrainingSettings) -> int:
    searched = [max(item.values) for item in space if item.name == "steps"]
    if not searched and training.steps is None:
        raise UserError("training.steps must be a number in tune, which compares trials step by step, got null")
    return int(searched[0]) if searched else training.known_steps


def _rungs(steps: int) -> tuple[int, ...]:
    """Successive halving's milestones: 1/4 and 1/2 of the steps; very short trainings have fewer, or none."""
    least = max(1, steps // REDUCTION_FACTOR**RUNGS)
    rungs = (least * REDUCTION_FACTOR**i for i in range(RUNGS))
    return tuple(rung for rung in rungs if rung < steps)


def _absolute(path: str) -> Path:
    return Path(path).expanduser().resolve()


def _absolute_dataset(dataset: str) -> str:
    from edgequant.workflows.steps.data import SELF_GENERATED, TEXTS
    from edgequant.workflows.steps.text_mix import with_parts

    named = (*TEXTS, SELF_GENERATED)
    return with_parts(dataset, lambda part: part if part in named else str(_absolute(part)))


def _absolute_data_dir(data_dir: str | None) -> str | None:
    folder = data_dir or os.environ.get("EDGEQUANT_DATA")
    return str(_absolute(folder)) if folder else None
