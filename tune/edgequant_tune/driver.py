"""The Ray Tune driver: search, or go on with a search, and leave nothing behind."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ray import tune

from edgequant import interruption, tracking
from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.files import write_atomically
from edgequant_tune.bookkeeping.ledger import Ledger
from edgequant_tune.bookkeeping.numbered_trials import NumberedTrials
from edgequant_tune.bookkeeping.trial_runs import TrialRuns, forget_best
from edgequant_tune.callbacks import TimeBudget, TrialCallback
from edgequant_tune.cluster.connection import inherited, node_resources, ray_cluster
from edgequant_tune.cluster.node_checks import check_nodes, local_inputs
from edgequant_tune.cluster.node_folder import delete_on_nodes
from edgequant_tune.fidelity.scheduler import scheduler_of
from edgequant_tune.progress import Progress
from edgequant_tune.scoring.selection import told_splits
from edgequant_tune.search_algorithm import SearchAlgorithm
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.trial import trainable
from edgequant_tune.trial_records import TrialRecord, read_records
from edgequant_tune.trial_spec import TrialSpec

__all__ = ["ray_cluster", "run_search"]

ENDING_PATIENCE_S = 30.0  # for the tracking store, where the search failed or was stopped anyway
# What is on disk of a search: a version that changes it raises the number, so that a search begun before is refused by
# name. Searches older than the file have none.
FORMAT, FORMAT_FILE = 4, "format.json"
# Ray Tune reads these when the search runs. The ledger is the search's state, so Ray's own is written at the end alone;
# no other loggers; reports need not hold every objective; Ctrl-C reaches us.
SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_search(spec: SearchSpec, run: tracking.Run, earlier: Sequence[TrialRecord] = ()) -> list[TrialRecord]:
    """Search, or go on with the search that the folder holds; Ray must run already.

    Args:
        spec: as `SearchSpec.on` made it for Ray's resources.
        run: the search's run; trials are nested under it.
        earlier: trials of other searches, which the searcher learns from.

    Returns:
        All trials, of the interrupted search too, in the order in which they were begun.

    Raises:
        UserError: the folder holds a search that another version began, a node cannot do a trial, the tracking store
            stayed away, or Ray ended the search before its last trial.
    """
    _check_format(spec.trial.folder)
    trial = spec.trial
    ledger = Ledger(trial.folder, spec.objectives, trial.trials_folder, storage=trial.storage)
    forget_best(run)
    with trial_runs(spec, run) as runs:
        runs.file_missing(ledger.ended)
        if (left := spec.trials - len(ledger.ended)) > 0:
            _check_cluster(trial)
            if ledger.records:
                print(f"search: goes on behind {len(ledger.ended)} of {spec.trials} trials", flush=True)
            with _shared_on_nodes(trial):
                may_have_fewer = _fit(spec, left, ledger, runs, earlier)
            if not may_have_fewer:
                _check_complete(spec, ledger)
    ledger.fetch_front()
    return read_records(spec.trial.folder)


def _check_cluster(trial: TrialSpec) -> None:
    """Ask every node, unless there is but the one that this process runs on."""
    from edgequant.workflows.steps.text_mix import parse_mix

    if trial.storage is None and len(node_resources()) == 1:
        return
    texts = [part.name for part in parse_mix(trial.dataset)]
    check_nodes(trial.storage or str(trial.folder), local_inputs(trial.model, *texts, trial.run.data_dir))


@contextmanager
def _shared_on_nodes(trial: TrialSpec) -> Iterator[None]:
    try:
        yield
    finally:
        if trial.node_folder is not None:
            delete_on_nodes(trial.node_folder)


def _check_complete(spec: SearchSpec, ledger: Ledger) -> None:
    if (ended := len(ledger.ended)) < spec.trials:
        raise UserError(
            f"the search ended after {ended} of {spec.trials} trials, which Ray did not say why; the same command with "
            "--resume true goes on with it"
        )


def _fit(spec: SearchSpec, trials: int, ledger: Ledger, runs: TrialRuns, earlier: Sequence[TrialRecord]) -> bool:
    """Run so many trials; returns whether there may be fewer: time was up, or nothing is left to try."""
    resources = {"cpu": spec.cpus_per_trial, "gpu": spec.gpus_per_trial}
    resources |= {} if spec.memory is None else {"memory": spec.memory}
    minutes = spec.time_budget_minutes
    budget = TimeBudget(None if minutes is None else 60 * minutes)
    unset = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    callback = TrialCallback(ledger, runs, Progress(spec.trials, spec.objectives[0]), budget)
    proposed = NumberedTrials(_searcher(spec, ledger, earlier), ledger)
    with inherited(unset), warnings.catch_warnings(), Scratch() as scratch:
        warnings.simplefilter("ignore")
        tune.Tuner(
            tune.with_resources(trainable(spec.trial), resources),
            tune_config=_tune_config(spec, trials, ledger, proposed),
            run_config=tune.RunConfig(
                name="search", storage_path=scratch, callbacks=[callback], stop=budget, verbose=0,
                failure_config=tune.FailureConfig(max_failures=1, fail_fast=False),  # of processes that die alone
            ),
        ).fit()  # fmt: skip
    return budget.reached or (proposed.is_exhausted and not ledger.unfinished)


@contextmanager
def trial_runs(spec: SearchSpec, run: tracking.Run) -> Iterator[TrialRuns]:
    """The runs of the search's trials; whatever ends the search, an error or a signal, none of them stays open."""
    trial = spec.trial
    split = told_splits(trial.evaluation.tasks, trial.dataset, trial.run.data_dir)
    tags = {"variant": "trial", "model": spec.model_name, "phase": "tune", "split": split}
    runs = TrialRuns(run, tags, spec.trial.scheme)
    try:
        yield runs
    except BaseException:
        with suppress(UserError):  # the first error stays the one that is told
            runs.close(ENDING_PATIENCE_S if interruption.received() is None else interruption.ENDING_S)
        raise
    runs.close()


def _check_format(folder: Path) -> None:
    file = folder / FORMAT_FILE
    there = [path for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    if not there:
        write_atomically(file, json.dumps({"format": FORMAT}))
        return
    begun_with = json.loads(file.read_text())["format"] if file.is_file() else None
    if begun_with != FORMAT:
        raise UserError(
            f"search {str(folder)!r} was begun by another version of edgequant; start it anew, without --resume"
        )


def _tune_config(spec: SearchSpec, trials: int, ledger: Ledger, proposed: NumberedTrials) -> tune.TuneConfig:
    return tune.TuneConfig(
        num_samples=trials,
        max_concurrent_trials=spec.concurrent_trials,
        search_alg=proposed,
        scheduler=scheduler_of(spec.trial.rungs, spec.longest_training, ledger.ended),
        reuse_actors=True,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _searcher(spec: SearchSpec, ledger: Ledger, earlier: Sequence[TrialRecord]) -> SearchAlgorithm:
    """What proposes hyperparameters: it knows all trials that are over, and proposes interrupted ones again first."""
    searcher = SearchAlgorithm(spec)
    searcher.learn([*earlier, *ledger.ended])
    searcher.repeat([record.values for record in ledger.unfinished])
    if earlier and not ledger.records and spec.recipe is not None:  # what others came to is no reason to leave it out
        searcher.repeat([spec.recipe])
    return searcher
