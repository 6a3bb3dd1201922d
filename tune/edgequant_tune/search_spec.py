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
from edgequant_tune.cluster.addresses import running_cluster
from edgequant_tune.cluster.memory import estimated_bytes, searched_most
from edgequant_tune.cluster.node_folder import node_folder, own_parts
from edgequant_tune.cluster.resources import (
    Node,
    asked_memory,
    check_latency_slots,
    check_share,
    granted_gpus,
    local_node,
    nodes_of,
    slots_of,
)
from edgequant_tune.cluster.storage import check_address, is_object_store
from edgequant_tune.fidelity.affordable_evaluation import affordable
from edgequant_tune.fidelity.halving import halving_text, rungs_of
from edgequant_tune.objective_tasks import goals_of, trial_evaluation, trial_timing
from edgequant_tune.objectives import Objective
from edgequant_tune.search_space import FINETUNED, QUANTIZED, SEED, read_space
from edgequant_tune.space.combinations import check_combinations, recipe_values
from edgequant_tune.space.composed_scheme import composed
from edgequant_tune.space.hyperparameter import Space, canonical, configuration
from edgequant_tune.train_candidate import finetune_candidate, qat_candidate
from edgequant_tune.trial_spec import TrialSpec

DEVICES = ("auto", "cpu", "cuda")

NUMBERS: dict[str, Any] = {
    "trials": int,
    "concurrent_trials": int | None,
    "time_budget_minutes": float | None,
    "cpus_per_trial": float,
    "gpus_per_trial": float,
    "memory_per_trial_gb": float | None,
}

Method = Literal["qat", "finetune"]


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """A search, fully specified; its attributes are named as the options of `tune`.

    Attributes:
        model_name: the model's short name.
        evaluation: what the best trial is measured on.
        replicates: seeds with which each configuration is trained.
        concurrent_trials: trials at a time at most; None: as many as fit, which `on` fills in.
        cpus_per_trial, gpus_per_trial: a fraction of a GPU shares it.
        memory_per_trial_gb: that a trial asks of its node; None: as estimated.
        memory: bytes that a trial asks of Ray, as `on` settles it; None: none.

    Raises:
        UserError: a number that is out of its range; names the option, its value and what was expected.
    """

    trial: TrialSpec
    model_name: str
    method: Method
    space: Space
    replicates: int = 1
    objectives: tuple[Objective, ...]
    trials: int
    time_budget_minutes: float | None
    concurrent_trials: int | None
    cpus_per_trial: float
    gpus_per_trial: float
    evaluation: EvaluationSettings
    memory_per_trial_gb: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        for option, kind in NUMBERS.items():
            check_type(option, getattr(self, option), kind)
        _check("trials", self.trials, self.trials >= 1, "at least 1")
        at_once, minutes = self.concurrent_trials, self.time_budget_minutes
        _check("concurrent_trials", at_once, at_once is None or at_once >= 1, "at least 1, or none")
        _check("time_budget_minutes", minutes, minutes is None or minutes > 0, "above 0, or none")
        _check("cpus_per_trial", self.cpus_per_trial, self.cpus_per_trial > 0, "above 0")
        _check("gpus_per_trial", self.gpus_per_trial, self.gpus_per_trial >= 0, "0 or more")
        memory = self.memory_per_trial_gb
        _check("memory_per_trial_gb", memory, memory is None or memory > 0, "above 0, or none")
        check_share(self.gpus_per_trial)
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
        policy: str | None = None,
        memory_per_trial_gb: float | None = None,
        storage_path: str | None = None,
    ) -> SearchSpec:
        """The search that the options of `tune` describe; nothing is loaded, everything that can be is checked.

        Raises:
            UserError: names the option, its value and what was expected.
        """
        if storage_path is not None and is_object_store(storage_path):
            check_address(storage_path)
        own = (QatSettings, CalibrationSettings) if method == "qat" else (LoraSettings,)
        others = QUANTIZED if method == "qat" else FINETUNED
        searched, replicates = read_space(space or method, (TrainingSettings, *own), others=others)
        goals, bounds = goals_of(objectives, constraints, method, device_profile, policy)
        text = halving_text(scheduler, [item.name for item in searched], goals, bounds, trials)
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
                evaluation=affordable(
                    trial_evaluation(evaluation, (*goals, *bounds)), training, _longest(searched, training)
                ),
                run=replace(run, data_dir=_absolute_data_dir(run.data_dir)),
                folder=_absolute(output if storage_path is None or is_object_store(storage_path) else storage_path),
                rungs=rungs_of(_longest(searched, training)) if text else (),
                rung_text=text,
                constraints=bounds,
                reported=evaluation.tasks,
                timing=trial_timing((*goals, *bounds), device_profile, cpus_per_trial),
                threads=max(1, int(cpus_per_trial)),
                storage=storage_path if is_object_store(storage_path) else None,
            ),
            model_name=source.family,
            method=method,
            space=searched,
            replicates=replicates,
            objectives=goals,
            trials=trials,
            time_budget_minutes=time_budget_minutes,
            concurrent_trials=concurrent_trials,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            evaluation=evaluation,
            memory_per_trial_gb=memory_per_trial_gb,
        )
        # a run's checkpoint says itself, and its address does not, which model it is of
        family = check_combinations(spec.trial, spec.space, quantized=method == "qat").family
        return replace(spec, model_name=family, trial=replace(spec.trial, family=family))

    def on(self, resources: Node | Sequence[Node], run_id: str) -> SearchSpec:
        """The same search as a cluster runs it: the GPUs that it has, the device of the trials, the run's own folder.

        Args:
            resources: Ray's, of each node (or of the only one): what there is of "CPU", "GPU" and "memory".

        Raises:
            UserError: a trial asks for more than any node has.
        """
        nodes, trial = nodes_of(resources), self.trial
        gpus = granted_gpus(self.cpus_per_trial, self.gpus_per_trial, trial.run.device, nodes)
        if trial.is_timed:
            check_latency_slots(self.cpus_per_trial, gpus, nodes)
        most = {item.name: max(item.values) for item in self.space if item.name in ("batch_size", "sequence_length")}
        training = searched_most(trial.training, most)
        needed = estimated_bytes(trial.model, training, self.method, on_gpu=bool(gpus))
        memory = asked_memory(needed, self.memory_per_trial_gb, nodes)
        run = replace(trial.run, device="cuda" if gpus else "cpu")
        storage = None if trial.storage is None else f"{trial.storage.rstrip('/')}/{run_id}"
        trial = replace(trial, run=run, folder=trial.folder / run_id, storage=storage)
        own = own_parts(self.space, trials=self.trials, replicates=self.replicates)
        trial = replace(trial, node_folder=node_folder(run_id), own=own)
        # none is asked for ahead of its slot: what ends until then is known to it
        slots = slots_of(nodes, {"CPU": self.cpus_per_trial, "GPU": gpus, "memory": memory or 0.0})
        slots = max(1, min(slots, self.concurrent_trials or slots, self.trials))
        return replace(self, trial=trial, gpus_per_trial=gpus, memory=memory, concurrent_trials=slots)

    def settings_of(self, values: Mapping[str, Any], replicate: int = 0) -> dict[str, Any]:
        """What a trial gets of proposed hyperparameters: those that count, the scheme that its parts make, its seed."""
        counting = configuration(self.space, values)
        seed = {SEED: self.trial.run.seed + replicate} if self.replicates > 1 else {}
        return counting | composed(self.trial.scheme, counting) | seed

    def check_machine(self, address: str | None = None) -> None:
        """Refuse what is not there, where Ray would run on this machine alone.

        Args:
            address: of the cluster that is asked for.

        Raises:
            UserError: names it.
        """
        if running_cluster(address) is None:
            models.check_device(self.trial.run.device)
            granted_gpus(self.cpus_per_trial, 0.0, "cpu", [local_node()])

    @property
    def longest_training(self) -> int:
        """Steps of the longest training that the space allows."""
        return _longest(self.space, self.trial.training)

    @property
    def recipe(self) -> dict[str, Any] | None:
        """Hyperparameters of the first trial: the settings without any search, so that the gain is seen.

        None where the search could not come to them.
        """
        given = recipe_values(self.trial)
        values = {item.name: given.get(item.name) for item in self.space}
        counting = configuration(self.space, values)
        if any(item.name in counting and not item.contains(counting[item.name]) for item in self.space):
            return None
        return canonical(self.space, {item.name: values[item.name] for item in self.space})


# -------------------------------------------------------------------------------------------------------------- checks


def _check(option: str, value: float | None, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"{option} must be {expected}, got {value}")


def _check_device(device: str) -> None:
    if device not in DEVICES:
        hint = "; Ray gives each trial its GPU, of those that $CUDA_VISIBLE_DEVICES names" if ":" in device else ""
        raise UserError(f"device must be one of {', '.join(DEVICES)}, got {device!r}{hint}")


# ------------------------------------------------------------------------------------------------------- what follows


def _longest(space: Space, training: TrainingSettings) -> int:
    searched = [max(item.values) for item in space if item.name == "steps"]
    if not searched and training.steps is None:
        raise UserError("training.steps must be a number in tune, which compares trials step by step, got null")
    return int(searched[0]) if searched else training.known_steps


def _absolute(path: str) -> Path:
    return Path(path).expanduser().resolve()


def _absolute_dataset(dataset: str) -> str:
    from edgequant.workflows.steps.text_mix import NAMED, with_parts

    return with_parts(dataset, lambda part: part if part in NAMED else str(_absolute(part)))


def _absolute_data_dir(data_dir: str | None) -> str | None:
    folder = data_dir or os.environ.get("EDGEQUANT_DATA")
    return str(_absolute(folder)) if folder else None
