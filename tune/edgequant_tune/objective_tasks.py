"""Which task an objective is a metric of, and so what a trial is measured on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.library import INSTALL, version
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.domain_perplexity import DOMAIN_PERPLEXITY
from edgequant.evaluation.tasks.registry import known_tasks, owner_of
from edgequant.workflows.shipping import MOST_THREADS, TimingPlan, plan_timing
from edgequant_tune.objectives import Constraint, Objective, read_constraints, read_objectives
from edgequant_tune.scoring.policy_gates import gates_of
from edgequant_tune.trial_spec import UNTIMED

# by every trial, beside what is described
ALWAYS_MEASURED = ("size", "train", "parity")
UNDESCRIBED = ("train/loss", "train/best_step", "size/parameters", "size/sparsity")
DEPLOY = "deploy"  # what ships of a qat trial
SIZES = ("deploy/size_gb", "deploy/reduction_vs_fp16")
TIMES = tuple(
    f"deploy/{name}"
    for name in ("load_ms", "time_to_first_token_ms", "prefill_ms_per_token", "decode_ms_per_token", "peak_rss_gb")
)
OF_A_PROFILE = tuple(f"deploy/{name}" for name in ("fits", "headroom_gb", "disk_headroom_gb", "tokens_per_second"))
Goal = Objective | Constraint


def check_objectives(goals: Sequence[Goal], *, method: str = "qat", device_profile: str | None = None) -> None:
    """Refuse an objective or a constraint on what no trial measures.

    Args:
        method: what ships of finetune, a floating-point model, is not measured.
        device_profile: what some metrics take.

    Raises:
        UserError: names it, and what is measured.
    """
    for goal in goals:
        named, group = type(goal).__name__.lower(), goal.metric.partition("/")[0]
        if group == DEPLOY:
            _check_deploy(named, goal.metric, method, device_profile)
            continue
        if group not in ALWAYS_MEASURED and owner_of(goal.metric) is None:
            groups = [*(task.group for task in known_tasks()), *ALWAYS_MEASURED, DEPLOY]
            known = ", ".join(f"{name}/..." for name in groups)
            raise UserError(
                f"{named} must be a metric that some task measures, got {goal.metric!r}; use one of {known}"
            )
        _check_name(named, goal.metric, group)


def _check_name(named: str, metric: str, group: str) -> None:
    """Refuse a metric that its task does not have: no trial would have it either."""
    from edgequant.reporting.columns import described_metrics

    known = [name for name in (*described_metrics(), *UNDESCRIBED) if name.partition("/")[0] == group]
    plain = re.sub(r"_ci_(low|high)$", "", metric)
    if plain not in known:
        near = get_close_matches(metric, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{named} {metric!r} is not measured; {hint}{group} has {', '.join(known)}")


def _check_deploy(named: str, metric: str, method: str, device_profile: str | None) -> None:
    known = (*SIZES, *TIMES, *OF_A_PROFILE)
    if metric not in known:
        raise UserError(f"{named} must be a metric of what ships, got {metric!r}; use one of {', '.join(known)}")
    if method != "qat":
        raise UserError(
            f"{named} {metric!r} needs method qat, got {method!r}, whose floating-point model ships nothing"
        )
    if metric in OF_A_PROFILE and device_profile is None:
        raise UserError(f"{named} {metric!r} needs a device_profile, such as edge-2c-1g; name one")
    if metric in TIMES and version() is None:
        raise UserError(f"{named} {metric!r} needs llama.cpp to be timed; {INSTALL}")


def goals_of(
    objectives: Sequence[str],
    constraints: Sequence[str],
    method: str,
    device_profile: str | None,
    policy: str | None = None,
) -> tuple[tuple[Objective, ...], tuple[Constraint, ...]]:
    """Objectives and constraints as they are written, checked; a device profile is a constraint too: to fit.

    Args:
        policy: the promotion policy whose absolute gates are constraints of qat trials, unless one is given for the
            same metric; None: none.

    Raises:
        UserError: as `read_objectives`, `read_constraints`, `check_objectives`.
    """
    wanted, bounds = read_objectives(objectives), read_constraints(constraints)
    if device_profile is not None and method != "qat":
        raise UserError(
            f"device_profile {device_profile!r} needs method qat, got {method!r}, whose model ships nothing"
        )
    check_objectives((*wanted, *bounds), method=method, device_profile=device_profile)
    bounds = (*bounds, *gates_of(policy, method, {bound.metric for bound in bounds}))
    named = {bound.metric for bound in bounds}
    fitting = () if device_profile is None or "deploy/fits" in named else (Constraint("deploy/fits", ">=", 1.0),)
    return wanted, (*bounds, *fitting)


def trial_timing(goals: Sequence[Goal], device_profile: str | None, cpus: float) -> TimingPlan:
    """How what ships of a trial is timed: where a goal or a profile asks for it, on the trial's own CPUs.

    Raises:
        UserError: as `plan_timing`.
    """
    wanted = device_profile is not None or any(goal.metric in TIMES for goal in goals)
    if not wanted:
        return UNTIMED
    own = int(cpus) if 1 <= cpus <= MOST_THREADS else 1
    return plan_timing(device_profile, None if device_profile is not None else own)


def trial_evaluation(evaluation: EvaluationSettings, goals: Sequence[Goal]) -> EvaluationSettings:
    """What a trial is measured on: what its objectives and constraints need, and domain perplexity always."""
    metrics = [o.metric for o in goals if o.metric.partition("/")[0] not in (*ALWAYS_MEASURED, DEPLOY)]
    owners = [DOMAIN_PERPLEXITY, *map(owner_of, metrics)]
    return replace(evaluation, tasks=tuple(dict.fromkeys(task.name for task in owners if task is not None)))
