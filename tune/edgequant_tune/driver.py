"""The Ray Tune driver: start Ray with what there is, search, survive a crash, leave nothing behind."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from edgequant_tune.objectives import Objective
from edgequant_tune.optuna_search import METRICS, Searcher
from edgequant_tune.plan import REDUCTION_FACTOR
from edgequant_tune.search_space import Space
from edgequant_tune.trial import HELD_OUT, Job, trainable
from edgequant_tune.trial_records import Outcome, read_record

STATE = "ray"  # folder of Ray Tune's own state, beside trials/ and trials.json
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


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search, fully specified.

    Attributes:
        name: the model's short name.
        first: hyperparameters of the first trial: the settings without any search, so that the gain is seen.
        seconds: time budget, or None.
        longest: steps of the longest training that the space allows.
        concurrent: trials at a time at most; None: as many as fit.
        cpus, gpus: resources of one trial; a fraction of a GPU shares it.
    """

    job: Job
    name: str
    space: Space
    objectives: tuple[Objective, ...]
    first: dict[str, Any] | None
    trials: int
    seconds: float | None
    longest: int
    concurrent: int | None
    cpus: float
    gpus: float

    @property
    def folder(self) -> Path:
        return Path(self.job.folder)


def run_search(search: Search, callbacks: Sequence[tune.Callback]) -> list[Outcome]:
    """Search, or go on with the search that the folder holds; Ray must run already.

    Returns:
        All trials, of the interrupted search too, in the order in which they were begun.
    """
    state = search.folder / STATE
    function = tune.with_resources(trainable(search.job), {"cpu": search.cpus, "gpu": search.gpus})
    with _environment(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if tune.Tuner.can_restore(str(state)):
            tuner = tune.Tuner.restore(str(state), function)
        else:
            tuner = tune.Tuner(function, tune_config=_tune_config(search), run_config=_run_config(search, callbacks))
        tuner.fit()
    return read_record(search.folder)


def _tune_config(search: Search) -> tune.TuneConfig:
    return tune.TuneConfig(
        num_samples=search.trials,
        time_budget_s=search.seconds,
        max_concurrent_trials=search.concurrent,
        search_alg=Searcher(search.space, search.objectives, search.job.seed, search.first),
        scheduler=_scheduler(search),
        reuse_actors=True,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _run_config(search: Search, callbacks: Sequence[tune.Callback]) -> tune.RunConfig:
    return tune.RunConfig(
        name=STATE,
        storage_path=str(search.folder),
        callbacks=list(callbacks),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
    )


def _scheduler(search: Search) -> TrialScheduler:
    """Successive halving on the held-out loss (Li et al. 2020, arXiv 1810.05934), at the rungs where it is measured."""
    if not search.job.rungs:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        metric=METRICS + HELD_OUT,
        mode="min",
        max_t=search.longest,
        grace_period=search.job.rungs[0],
        reduction_factor=REDUCTION_FACTOR,
        stop_last_trials=False,  # the last report in training comes before the checkpoint is converted and measured
    )


@contextmanager
def ray_cluster(environment: Mapping[str, str]) -> Iterator[dict[str, float]]:
    """Ray, yielding its resources: the cluster that runs or that $RAY_ADDRESS names, else one of this machine's own.

    Args:
        environment: environment variables of the workers.
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
                runtime_env={"env_vars": dict(environment)},
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
