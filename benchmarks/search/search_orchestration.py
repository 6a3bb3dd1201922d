"""What a search costs beside its trials: seconds per trial that does no work, against plain Ray; share of time.

    python benchmarks/search/search_orchestration.py --trials 60             # trials that do no work
    python benchmarks/search/search_orchestration.py --trials 1000 --skip default    # is it flat?
    python benchmarks/search/search_orchestration.py --trials 8 --seconds 30 --skip default reused  # share of time

All sides run in one Ray, with the same space and searcher, two trials at a time. Plain Ray Tune keeps no record, no
run and no logger's files: as it is by default, with a new worker for each trial, and with workers that are used again.
edgequant's side ends when its last run is in MLflow (sqlite). Columns: seconds per trial, all in; when the first trial
ends; seconds from one end to the next in the first hundred and in the last; the share of time that is no trial's.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from contextlib import chdir
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from ray import tune

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "platform"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tune"))

from edgequant import tracking
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant_tune.driver import SETTINGS, ray_cluster, run_search
from edgequant_tune.search_algorithm import SearchAlgorithm
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.train_candidate import Candidate

SPACE = {"learning_rate": {"log_uniform": [1e-6, 1e-2]}, "weight_decay": {"uniform": [0.0, 0.1]}}
AT_ONCE = 2
SEGMENT = 100  # trials at either end whose pace is compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.0, help="length of a trial; 0: it does no work")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--skip", nargs="*", default=[], choices=["default", "reused"], help="of plain Ray's sides")
    options = parser.parse_args()
    os.environ.update({name: value for name, value in SETTINGS.items() if name != "TUNE_GLOBAL_CHECKPOINT_S"})
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name, chdir(name), ray_cluster() as resources:
        mlflow.set_tracking_uri(f"sqlite:///{name}/mlflow.db")
        known = {
            "default": ("plain Ray Tune, its default", partial(plain, reuse=False)),
            "reused": ("plain Ray Tune, workers used again", partial(plain, reuse=True)),
            "": ("edgequant tune", partial(searched, resources=resources)),
        }
        sides = dict(named for short, named in known.items() if short not in options.skip)
        for side in sides.values():
            side(AT_ONCE, 0.0, folder=Path(name))
        title = f"{options.trials} trials of {options.seconds:g} s"
        print(f"| {title} | s/trial | first ends | {SEGMENT} on | last {SEGMENT} | rest |")
        print("|---|---|---|---|---|---|")
        for _ in range(options.rounds):
            for named, side in sides.items():
                print(row(named, side(options.trials, options.seconds, folder=Path(name)), options), flush=True)


class Timing(NamedTuple):
    """Seconds from the start to the end of everything, and when each trial ended."""

    wall: float
    ends: list[float]


def row(side: str, found: Timing, options: argparse.Namespace) -> str:
    first, last = pace(found.ends[:SEGMENT]), pace(found.ends[-SEGMENT:])
    rest = 1 - options.trials * options.seconds / AT_ONCE / found.wall
    each = found.wall / options.trials
    return f"| {side} | {each:.3f} | {found.ends[0]:.1f} s | {first:.4f} | {last:.4f} | {100 * rest:.1f} % |"


def pace(ends: list[float]) -> float:
    return (ends[-1] - ends[0]) / max(1, len(ends) - 1)


def note_end(file: Path) -> None:
    with file.open("a") as opened:
        opened.write(f"{time.time()}\n")


def timed(begun: float, file: Path) -> Timing:
    wall = time.time() - begun
    ends = sorted(float(line) - begun for line in file.read_text().split())
    file.unlink()
    return Timing(wall, ends)


def candidate(trial: Any, work_dir: Path, _on_report: Any) -> Candidate:
    """Does nothing for as long as it is told."""
    time.sleep(trial.training.max_minutes * 60)
    (work_dir / "checkpoint").mkdir()
    note_end(trial.folder.parent / "ends.txt")
    return Candidate({"domain/perplexity": 10 + trial.training.learning_rate}, work_dir / "checkpoint")


def search_spec(trials: int, seconds: float, folder: Path) -> SearchSpec:
    spec = SearchSpec.from_options(
        model="tiny", method="qat", scheme="w8", dataset="disaster", space=SPACE, objectives=["domain/perplexity"],
        trials=trials, time_budget_minutes=None, scheduler="none", concurrent_trials=AT_ONCE, cpus_per_trial=1.0,
        gpus_per_trial=0.0, training=TrainingSettings(steps=1, learning_rate=1e-3, max_minutes=seconds / 60 + 1e-9),
        qat=QatSettings(), calibration=CalibrationSettings(), lora=LoraSettings(), evaluation=EvaluationSettings(),
        output=str(folder), run=RunSettings(device="cpu"),
    )  # fmt: skip
    return replace(spec, trial=replace(spec.trial, train=candidate))


def searched(trials: int, seconds: float, *, folder: Path, resources: Any) -> Timing:
    """edgequant's search, to the last write to MLflow."""
    with tracking.workflow_run("tune", {"of": "a benchmark"}) as run:
        spec = search_spec(trials, seconds, folder).on(resources, run.id)
        begun = time.time()
        run_search(spec, run)
        return timed(begun, folder / "ends.txt")


def plain(trials: int, seconds: float, *, folder: Path, reuse: bool) -> Timing:
    """Ray Tune by itself."""
    spec = search_spec(trials, seconds, folder)

    def trial(config: dict[str, Any]) -> None:
        time.sleep(seconds)
        with (folder / "ends.txt").open("a") as opened:
            opened.write(f"{time.time()}\n")
        tune.report({"metrics": {"domain/perplexity": 10 + config["learning_rate"]}, "complete": True})

    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "auto"  # as plain Ray has it
    begun = time.time()
    tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            num_samples=trials,
            max_concurrent_trials=AT_ONCE,
            search_alg=SearchAlgorithm(spec),
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "plain"), verbose=0),
    ).fit()
    del os.environ["TUNE_GLOBAL_CHECKPOINT_S"]
    return timed(begun, folder / "ends.txt")


if __name__ == "__main__":
    main()
