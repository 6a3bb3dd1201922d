"""What runs in a Ray worker: one trial trains one candidate and reports it; it writes to no tracking store."""

from __future__ import annotations

import gc
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgequant.files import write_atomically
from edgequant_tune.cluster.memory import halved, lacks_memory
from edgequant_tune.cluster.quiet_node import NodeLock
from edgequant_tune.cluster.storage import put_folder
from edgequant_tune.objectives import violation
from edgequant_tune.trial_spec import OnReport, TrialSpec

TRACEBACK = "traceback.txt"
IDENTITY = "edgequant_trial"  # beside the hyperparameters in what Ray calls a trial's config
HALVED = "edgequant_halved"  # in it too, where the trial's process died for want of memory


def trainable(spec: TrialSpec) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune calls with each trial's hyperparameters and identity."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        run_trial(spec, values_of(config), identity_of(config), tune.report, halve=bool(config.get(HALVED)))

    return trial


def run_trial(
    spec: TrialSpec,
    values: Mapping[str, Any],
    trial_id: str,
    report: Callable[[dict[str, Any]], None],
    *,
    halve: bool = False,
) -> None:
    """Train one candidate; report its metrics as training goes and, complete, as measured on the reloaded checkpoint.

    A report holds `step`, `complete`, `metrics` (by metric name) and, when complete, the `checkpoint`'s folder. What a
    trial raises is its last report, as `failed`: the traceback; only a process that dies is an error to Ray. Where
    memory runs out, a trial is tried once more with half the micro-batch and as many sequences in a step;
    `as_trained` of the last report says with what.

    Args:
        halve: memory has run out once: the process died of it.
    """
    work_dir = spec.work_folder / trial_id
    steps, lock = [0], NodeLock() if spec.is_timed else None

    def on_report(step: int, found: dict[str, float]) -> None:
        steps.append(step)
        report({"step": step, "complete": False, "metrics": dict(found)})
        if lock is not None:
            lock.pause_if_wanted()

    with nullcontext() if lock is None else lock.working():
        last = _outcome(spec, values, work_dir, on_report, halve)
    report({"step": steps[-1]} | last)


def _outcome(
    spec: TrialSpec, values: Mapping[str, Any], work_dir: Path, on_report: OnReport, halve: bool
) -> dict[str, Any]:
    try:
        candidate = spec.with_values(values)
        found = None if halve else _trained(candidate, work_dir, on_report)
        as_trained: dict[str, int] = {}
        if found is None:
            candidate, as_trained = _smaller(candidate)
            found = _trained(candidate, work_dir, on_report)
        if found is None:
            raise MemoryError(f"out of memory, with {_batch(candidate)} too")
    except Exception:
        text = traceback.format_exc()
        write_atomically(work_dir / TRACEBACK, text)
        return {"complete": False, "metrics": {}, "failed": text}
    return found | {"as_trained": as_trained}


def _trained(candidate: TrialSpec, work_dir: Path, on_report: OnReport) -> dict[str, Any] | None:
    """The last report of a trial; None where memory ran out: what was held is given back by then."""
    shutil.rmtree(work_dir, ignore_errors=True)  # what an interrupted attempt at the same trial left
    work_dir.mkdir(parents=True)
    try:
        metrics, checkpoint = candidate.train(candidate, work_dir, on_report)
    except Exception as error:
        if not lacks_memory(error):
            raise
        print(f"out of memory with {_batch(candidate)}: {error}", file=sys.stderr, flush=True)
        return None
    finally:
        _release_memory()
    return {
        "step": candidate.training.steps,
        "complete": True,
        "metrics": dict(metrics) | violation(candidate.constraints, metrics),
        "checkpoint": _kept(candidate, work_dir, Path(checkpoint)),
    }


def _kept(candidate: TrialSpec, work_dir: Path, checkpoint: Path) -> str:
    """Where the checkpoint lies from now on."""
    if candidate.storage is None:
        return str(checkpoint)
    place = stored(candidate.storage, work_dir.name)
    put_folder(checkpoint, f"{place}/{checkpoint.name}")
    shutil.rmtree(work_dir, ignore_errors=True)
    return f"{place}/{checkpoint.name}"


def stored(storage: str, trial_id: str) -> str:
    """Where in an object store a trial's checkpoint lies."""
    return f"{storage}/trials/{trial_id}"


def _smaller(candidate: TrialSpec) -> tuple[TrialSpec, dict[str, int]]:
    """The same trial with half the micro-batch, and the settings that differ."""
    training = halved(candidate.training)
    if training is None:
        raise MemoryError(f"out of memory, with {_batch(candidate)} already")
    changed = {"batch_size": training.batch_size, "gradient_accumulation": training.gradient_accumulation}
    return replace(candidate, training=training), changed


def _batch(candidate: TrialSpec) -> str:
    training = candidate.training
    return f"batch_size {training.batch_size} and gradient_accumulation {training.gradient_accumulation}"


def identity_of(config: Mapping[str, Any]) -> str:
    """The ledger's id of a trial."""
    return str(config[IDENTITY])


def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a trial."""
    return {name: value for name, value in config.items() if name not in (IDENTITY, HALVED)}


def _release_memory() -> None:
    """A worker serves trial after trial: give back what the last one held, for trials beside this one too.

    What the first one has imported stays anyway: looking through it again takes longer than a short trial.
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
