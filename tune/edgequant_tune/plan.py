"""From the user's parameters to a search: everything that can be checked without loading anything is checked here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.domain_perplexity import DOMAIN_PERPLEXITY
from edgequant.evaluation.tasks.registry import known_tasks, owner_of
from edgequant.quantization.settings import QuantizationSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant_tune.objectives import Objective, read_objectives
from edgequant_tune.space import SCHEME, Space, read_space
from edgequant_tune.trial import CANDIDATES, Job, with_values

if TYPE_CHECKING:
    from edgequant_tune.search import Search

# Trials are compared at a quarter and at a half of the longest training, and the worse half is stopped: earlier, in the
# warm-up of the learning rate, a comparison says little.
REDUCTION_FACTOR = 2
RUNGS = 2
WORTH_HALVING = 8  # trials; with fewer, each one's result is worth more than the time it takes
# What changes the meaning of a loss, so that trials cannot be compared by the loss in the middle of training.
INCOMPARABLE = ("sequence_length",)
ALWAYS_MEASURED = ("size", "train", "parity")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked search that does not know yet where it runs. `name` is the model's short name."""

    name: str
    method: str
    model: str
    scheme: str
    text: str
    space: Space
    objectives: tuple[Objective, ...]
    trials: int
    training: TrainingSettings
    quantization: QuantizationSettings
    lora: LoraSettings
    minutes: float | None
    halving: bool
    concurrent: int | None
    cpus: float
    gpus: float
    candidate: str


def check_plan(
    *,
    method: str,
    space: str | Mapping[str, Any] | None,
    objectives: Sequence[str],
    scheduler: str,
    model: str,
    scheme: str,
    text: str,
    trials: int,
    **rest: Any,
) -> Plan:
    """Check a search's parameters.

    Raises:
        UserError: names the parameter, its value and what was expected.
    """
    from edgequant import models

    own = QuantizationSettings if method == "qat" else LoraSettings
    read = read_space(space or method, (TrainingSettings, own), with_scheme=method == "qat")
    wanted = read_objectives(objectives)
    plan = Plan(
        name=models.check_available(model).name, method=method, model=model, text=text, space=read, objectives=wanted,
        trials=trials,
        scheme=scheme if method == "qat" else "none", candidate=CANDIDATES[method],
        halving=_halving(scheduler, read, wanted, trials), **rest,
    )  # fmt: skip
    for name, value in (("trials", plan.trials), ("concurrent_trials", plan.concurrent)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} is impossible; expected at least 1")
    if plan.minutes is not None and plan.minutes <= 0:
        raise UserError(f"time_budget_minutes {plan.minutes} is impossible; expected a time above 0, or none")
    if plan.cpus <= 0 or plan.gpus < 0:
        raise UserError(
            f"cpus_per_trial {plan.cpus}, gpus_per_trial {plan.gpus}: expected CPUs above 0, GPUs 0 or more"
        )
    _check_objectives(wanted)
    _check_ends(plan)
    return plan


def _halving(scheduler: str, space: Space, objectives: Sequence[Objective], trials: int) -> bool:
    incomparable = [item.name for item in space if item.name in INCOMPARABLE]
    if scheduler == "asha" and incomparable:
        raise UserError(
            f"scheduler asha cannot compare the losses of trials that differ in {incomparable[0]}; use none"
        )
    by_itself = len(objectives) == 1 and not incomparable and trials >= WORTH_HALVING
    return scheduler == "asha" or (scheduler == "auto" and by_itself)


def _check_objectives(objectives: Sequence[Objective]) -> None:
    for objective in objectives:
        group = objective.metric.partition("/")[0]
        if group not in ALWAYS_MEASURED and owner_of(objective.metric) is None:
            groups = [*(task.group for task in known_tasks()), *ALWAYS_MEASURED]
            known = ", ".join(f"{name}/..." for name in groups)
            raise UserError(f"objective {objective.metric!r} is measured by nothing; expected one of {known}")


def _check_ends(plan: Plan) -> None:
    """The ends of every range must be possible settings, and every scheme must fit the model."""
    from edgequant.workflows.inputs import check_text
    from edgequant.workflows.qat import check_configuration

    for item in plan.space:
        for value in item.values:
            values = {item.name: value}
            for settings in (plan.training, plan.quantization, plan.lora):
                with_values(settings, values)  # checks itself
    if plan.method == "finetune":
        return check_text(plan.text)
    if all(item.name != "distillation" for item in plan.space):
        plan.quantization.check_distillation(plan.training.distillation)
    searched = [item.values for item in plan.space if item.name == SCHEME]
    for scheme in searched[0] if searched else [plan.scheme]:
        plan.quantization.check_scheme(check_configuration(plan.model, scheme, plan.text))


def make_search(
    plan: Plan,
    run_id: str,
    resources: Mapping[str, float],
    evaluation: EvaluationSettings,
    data_dir: str | None,
    output: str,
    device: str,
    seed: int,
) -> Search:
    """The search for this run on these resources; paths become absolute, since trials work elsewhere.

    Raises:
        UserError: a trial asks for more than there is.
    """
    from edgequant_tune.search import Search

    gpus = _gpus(plan.gpus, device, resources.get("GPU", 0))
    if plan.cpus > resources.get("CPU", 0):
        raise UserError(
            f"cpus_per_trial {plan.cpus:g} is more than the {resources.get('CPU', 0):g} CPUs there are; ask for less"
        )
    steps = _longest(plan)
    job = Job(
        candidate=plan.candidate,
        model=_absolute_model(plan.model),
        scheme=plan.scheme,
        training=plan.training,
        quantization=plan.quantization,
        lora=plan.lora,
        evaluation=trial_evaluation(evaluation, plan.objectives),
        text=_absolute_text(plan.text),
        data_dir=_data_dir(data_dir),
        device="cuda" if gpus else "cpu",
        seed=seed,
        folder=str(Path(output).expanduser().resolve() / run_id),
        rungs=_rungs(steps) if plan.halving else (),
    )
    seconds = None if plan.minutes is None else 60 * plan.minutes
    return Search(
        job=job, name=plan.name, space=plan.space, objectives=plan.objectives, first=_first(plan), trials=plan.trials,
        seconds=seconds, longest=steps, concurrent=plan.concurrent, cpus=plan.cpus, gpus=gpus,
    )  # fmt: skip


def trial_evaluation(evaluation: EvaluationSettings, objectives: Sequence[Objective]) -> EvaluationSettings:
    """What a trial is measured on: what its objectives need, and domain perplexity always."""
    metrics = [o.metric for o in objectives if o.metric.partition("/")[0] not in ALWAYS_MEASURED]
    owners = [DOMAIN_PERPLEXITY, *map(owner_of, metrics)]
    return replace(evaluation, tasks=tuple(dict.fromkeys(task.name for task in owners if task is not None)))


def _gpus(wanted: float, device: str, available: float) -> float:
    if device.startswith("cuda:"):
        raise UserError(
            f"device {device!r}: Ray gives each trial its GPU; use auto, cuda or cpu, and $CUDA_VISIBLE_DEVICES"
        )
    if device == "cuda" and (not available or not wanted):
        raise UserError(f"device cuda with gpus_per_trial {wanted:g} on {available:g} GPUs; use auto or cpu")
    if device == "cpu" or not available:
        return 0.0
    if wanted > available:
        raise UserError(f"gpus_per_trial {wanted:g} is more than the {available:g} GPUs there are; ask for less")
    return wanted


def _first(plan: Plan) -> dict[str, Any] | None:
    """The settings as they are, if the search could come to them: the trial that all others are compared with."""
    given = {SCHEME: plan.scheme} | vars(plan.training) | vars(plan.quantization) | vars(plan.lora)
    return (
        {item.name: given[item.name] for item in plan.space}
        if all(i.contains(given[i.name]) for i in plan.space)
        else None
    )


def _longest(plan: Plan) -> int:
    searched = [max(item.values) for item in plan.space if item.name == "steps"]
    return int(max([plan.training.steps, *searched]) if not searched else searched[0])


def _rungs(steps: int) -> tuple[int, ...]:
    """Successive halving's milestones: 1/4 and 1/2 of the steps; very short trainings have fewer, or none."""
    least = max(1, steps // REDUCTION_FACTOR**RUNGS)
    rungs = (least * REDUCTION_FACTOR**i for i in range(RUNGS))
    return tuple(rung for rung in rungs if rung < steps)


def _absolute_model(model: str) -> str:
    from edgequant import models

    source = models.resolve(model)
    return source.location if source.kind in ("folder", "gguf") else model


def _absolute_text(text: str) -> str:
    from edgequant.workflows.inputs import GENERATED, TEXTS
    from edgequant.workflows.text_mix import with_parts

    named = (*TEXTS, GENERATED)
    return with_parts(text, lambda part: part if part in named else str(Path(part).expanduser().resolve()))


def _data_dir(data_dir: str | None) -> str | None:
    folder = data_dir or os.environ.get("EDGEQUANT_DATA")
    return str(Path(folder).expanduser().resolve()) if folder else None
