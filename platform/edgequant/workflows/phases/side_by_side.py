"""Several models of a pipeline side by side: each in a process of its own, on a GPU of its own, by Ray.

What a process writes lies in its model's folder, what it prints in `LOG` there, and in runs below the pipeline's; all
that is shared, the caches and the store, takes several writers. A process that dies costs its model alone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgequant.errors import UserError, first_line
from edgequant.machine.cores import physical_cores
from edgequant.ray_signals import same_code, sigterm_kept
from edgequant.redaction import without_secrets
from edgequant.workflows.phases.checks import PHASES
from edgequant.workflows.phases.ledger import Ledger
from edgequant.workflows.phases.plan import Plan
from edgequant.workflows.phases.running import Rows, has_run, run_phases
from edgequant.workflows.shipping import TimingPlan

LATER = ("compare",)  # times every model beside others, which is done alone
EARLIER = tuple(phase for phase in PHASES if phase not in LATER)
LOG = "log.txt"  # of one attempt after the other
UNWINDING_S = 3.0  # for processes to end their runs where the pipeline is interrupted, which has 6 s itself


class Share(NamedTuple):
    """What Ray gives each model."""

    cpus: float
    gpus: float


class Outcome(NamedTuple):
    """Rows of the phases that a model has gone through, and why it went no further, if it did not."""

    rows: Rows
    failed: Exception | None


def check_at_once(asked: int | None) -> None:
    """Refuse a number of models that is none.

    Raises:
        UserError: names it.
    """
    if asked is not None and asked < 1:
        raise UserError(f"models_at_once must be 1 or more, or null for one per GPU, got {asked}")


def models_at_once_of(asked: int | None, models: int, device: str) -> int:
    """How many models to work on at once: as asked for, else one for each GPU that this process sees.

    One where torchrun has started this process as one of several, which train a model together.
    """
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return 1 if together else min(models, asked or max(1, _gpus(device)))


def share_of(at_once: int, device: str) -> Share:
    """A whole GPU where there are as many as models at once, else a part that as many others share as have to."""
    gpus = _gpus(device)
    part = 1 / math.ceil(at_once / gpus) if gpus else 0.0  # of one GPU: Ray gives no task parts of two
    return Share(max(1, physical_cores() // at_once), part)


def run_side_by_side(
    plans: Mapping[str, Plan], at_once: int, run_id: str, timing: TimingPlan, *, resumed: bool
) -> dict[str, Outcome]:
    """The phases of all models but those that come `LATER`, at most so many models at once, under one parent run.

    Args:
        plans: by the model's name.
        run_id: of the parent, which this process is writing.
        resumed: go on with the runs of an earlier attempt.
    """
    import ray

    from edgequant import tracking

    if ray.is_initialized():
        raise UserError("models_at_once must be 1 where this process uses Ray already; call ray.shutdown() first")
    device = next(iter(plans.values())).run.device
    share, store = share_of(at_once, device), tracking.client().tracking_uri
    found: dict[str, Outcome] = {}
    with _ray(at_once, share):
        remote = ray.remote(max_calls=1, max_retries=0)(_phases_of_one)
        settings: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": share.gpus}
        waiting = {
            remote.options(name=name, **settings).remote(name, plan, timing, os.getcwd(), store, run_id, resumed): name
            for name, plan in plans.items()
        }
        for name, plan in plans.items():
            print(f"{name}: what its phases say lies in {plan.folder / LOG}", flush=True)
        try:
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                name = waiting.pop(ended)
                outcome = found[name] = _outcome(ended, name, plans[name])
                how = "done" if outcome.failed is None else f"failed: {first_line(outcome.failed)}"
                print(f"{name}: {how}", flush=True)
        except BaseException:
            for task in waiting:
                ray.cancel(task)
            ray.wait(list(waiting), num_returns=len(waiting), timeout=UNWINDING_S)
            raise
    return {name: found[name] for name in plans}


def _outcome(task: Any, name: str, plan: Plan) -> Outcome:
    import ray

    try:
        return Outcome(*ray.get(task))
    except ray.exceptions.RayError as error:  # the process died: of memory, or killed
        ledger = Ledger(plan.folder, has_run)
        asked = (*plan.phases, *(f"adapt-{order}" for order in plan.adapt))
        notes = {phase: ledger.done(phase, plan.inputs(phase)) for phase in plan.steps if phase in asked}
        there = {phase: note.run for phase, note in notes.items() if note is not None}
        rows = [{"model": name, "phase": phase, "run": run, "minutes": None} for phase, run in there.items()]
        return Outcome(rows, UserError(f"its process ended: {_said(getattr(error, 'cause', None) or error)}"))


def _said(error: BaseException) -> str:
    return first_line(error) or type(error).__name__


def _phases_of_one(
    name: str, plan: Plan, timing: TimingPlan, place: str, store: str, run_id: str, resumed: bool
) -> tuple[Rows, Exception | None]:
    """In a process of Ray's."""
    from edgequant import tracking

    os.chdir(place)
    rows, failed = Rows(), None
    with printed_to(plan.folder / LOG):
        try:
            with tracking.joined(run_id, plan.folder, store=store, resumed=resumed):
                run_phases(name, plan, Ledger(plan.folder, has_run), timing, rows, but=LATER)
        except Exception as error:  # crosses between processes as an error that any can read
            if not isinstance(error, UserError):
                print(without_secrets(traceback.format_exc()))
            failed = UserError(_said(error))
    return [row | {"run": tracking.real_id(row["run"])} for row in rows], failed


@contextlib.contextmanager
def printed_to(file: Path) -> Iterator[None]:
    """What Python prints goes to the end of a file; by lines, so that it can be followed."""
    with (
        file.open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


@contextlib.contextmanager
def _ray(at_once: int, share: Share) -> Iterator[None]:
    """Ray on this machine, for no longer than this lasts."""
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    with sigterm_kept():
        ray.init(
            address="local", num_cpus=max(1, int(at_once * share.cpus)), include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR, runtime_env=same_code(elsewhere=False),
        )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def _gpus(device: str) -> int:
    import torch

    return torch.cuda.device_count() if device in ("auto", "cuda") else 0
