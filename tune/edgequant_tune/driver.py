"""The Ray Tune driver: start Ray with what there is, search, survive a crash, leave nothing behind."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.files import write_atomically
from edgequant_tune.callbacks import absolute_store, search_callbacks, trials_closed
from edgequant_tune.objectives import HELD_OUT
from edgequant_tune.optuna_search import METRICS, OptunaTpe
from edgequant_tune.search_spec import REDUCTION_FACTOR, SearchSpec
from edgequant_tune.trial import trainable
from edgequant_tune.trial_records import TrialRecord, read_records

STATE = "ray"  # folder of Ray Tune's own state, beside trials/ and trials.json
# Ray's state pickles names of our modules and classes: a version that changes them raises the number, so that a search
# begun before is refused by name. Searches older than the file have none.
FORMAT, FORMAT_FILE = 3, "format.json"
PACKAGES = ("edgequant", "edgequant_tune")
# Ray Tune reads these when the search runs: state on disk ten times a second, so that a crash costs no finished trial
# and a begun one goes on in its own run; no other loggers; reports need not hold every objective; Ctrl-C reaches us.
SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "0.1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_search(spec: SearchSpec, run: tracking.Run) -> list[TrialRecord]:
    """Search, or go on with the search that the folder holds; Ray must run already.

    Args:
        spec: as `SearchSpec.on` made it for Ray's resources.
        run: the search's run; trials are nested under it.

    Returns:
        All trials, of the interrupted search too, in the order in which they were begun.

    Raises:
        UserError: the folder holds a search that another version began.
    """
    resources = {"cpu": spec.cpus_per_trial, "gpu": spec.gpus_per_trial}
    with _environment(SETTINGS), warnings.catch_warnings(), trials_closed(run):
        warnings.simplefilter("ignore")
        _tuner(spec, tune.with_resources(trainable(spec.trial), resources), run).fit()
    return read_records(spec.trial.folder)


def _tuner(spec: SearchSpec, function: Any, run: tracking.Run) -> tune.Tuner:
    folder = spec.trial.folder
    if tune.Tuner.can_restore(str(folder / STATE)):
        _check_format(folder)
        return tune.Tuner.restore(str(folder / STATE), function)
    write_atomically(folder / FORMAT_FILE, json.dumps({"format": FORMAT}))
    return tune.Tuner(function, tune_config=_tune_config(spec), run_config=_run_config(spec, run))


def _check_format(folder: Path) -> None:
    file = folder / FORMAT_FILE
    begun_with = json.loads(file.read_text())["format"] if file.is_file() else None
    if begun_with != FORMAT:
        raise UserError(
            f"search {str(folder)!r} was begun by another version of edgequant; start it anew, without --resume"
        )


def _tune_config(spec: SearchSpec) -> tune.TuneConfig:
    return tune.TuneConfig(
        num_samples=spec.trials,
        time_budget_s=None if spec.time_budget_minutes is None else 60 * spec.time_budget_minutes,
        max_concurrent_trials=spec.concurrent_trials,
        search_alg=OptunaTpe(
            spec.space, spec.objectives, spec.trial.run.seed, spec.recipe, bool(spec.trial.constraints)
        ),
        scheduler=_scheduler(spec),
        reuse_actors=True,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _run_config(spec: SearchSpec, run: tracking.Run) -> tune.RunConfig:
    return tune.RunConfig(
        name=STATE,
        storage_path=str(spec.trial.folder),
        callbacks=search_callbacks(spec, run),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
    )


def _scheduler(spec: SearchSpec) -> TrialScheduler:
    """Successive halving on the held-out loss (Li et al. 2020, arXiv 1810.05934), at the rungs where it is measured."""
    if not spec.trial.rungs:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        metric=METRICS + HELD_OUT,
        mode="min",
        max_t=spec.longest_training,
        grace_period=spec.trial.rungs[0],
        reduction_factor=REDUCTION_FACTOR,
        stop_last_trials=False,  # the last report in training comes before the checkpoint is converted and measured
    )


def worker_environment() -> dict[str, str]:
    """What Ray's workers need: the packages (a checkout is on no path of theirs) and the store, by absolute paths."""
    roots = [str(Path(importlib.import_module(name).__path__[0]).parent) for name in PACKAGES]
    paths = [*roots, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in paths)),
        "MLFLOW_TRACKING_URI": absolute_store(tracking.client().tracking_uri),
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextmanager
def ray_cluster() -> Iterator[dict[str, float]]:
    """Ray, yielding its resources: the cluster that runs or that $RAY_ADDRESS names, else one of this machine's own.

    Its workers get `worker_environment()`, unless this process has started Ray before.
    """
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    with _short_folder() as folder:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are shown in the table
        own: dict[str, Any] = {"include_dashboard": False, "_temp_dir": folder}
        with _sigterm_kept():
            ray.init(
                runtime_env={"env_vars": worker_environment()},
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if os.environ.get("RAY_ADDRESS") else own),
            )
        try:
            yield ray.cluster_resources()
        finally:
            ray.shutdown()


@contextmanager
def _short_folder() -> Iterator[str]:
    """For Ray's Unix sockets, whose paths have at most 107 characters: under /tmp, whatever $TMPDIR says."""
    folder = tempfile.mkdtemp(prefix="eq-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself; the run's own handler must go on seeing it, or the run stays RUNNING."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
