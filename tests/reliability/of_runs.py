"""Runs as MLflow keeps them, and what is said of them at the end."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

from situation import Place, Situation

ROWS = {"baseline": ("none", 60.0), "qat": ("w4a8-g32+emb4", 58.0)}


def stored(place: Place, *, bounds: str = "table") -> str:
    """A finished `qat` with two measured models; its bounds in a table, as metrics like earlier runs', or lost."""
    import mlflow

    from edgequant import tracking

    with tracking.workflow_run("qat", {"model": "tiny", "scheme": "w4a8-g32+emb4"}) as run:
        for variant, (scheme, f1) in ROWS.items():
            with tracking.variant_run(variant, model="tiny", scheme=scheme, phase="qat") as child:
                metrics = {"squad/f1": f1, "squad/f1_ci_low": f1 - 3, "squad/f1_ci_high": f1 + 2.5}
                (mlflow.log_metrics if bounds == "metrics" else tracking.log_metrics)(metrics)
            if bounds == "damaged":
                table = next(place.folder.rglob(f"{child.id}/artifacts/metrics.json"))
                table.write_text("{")
    return run.id


def report(place: Place, *arguments: str, bounds: str = "table") -> str:
    stored(place, bounds=bounds)
    return place.edgequant("report", *arguments)


def not_activated(place: Place) -> str:
    """An environment in .venv, as `make setup` makes it, whose programs are not on the PATH."""
    programs = place.folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "mlflow").touch()
    with mock.patch.object(sys, "executable", str(programs / "python")), mock.patch.dict(os.environ, PATH="/nowhere"):
        return report(place)


def title_like_markup(place: Place) -> str:
    said = report(place, "--title", "a|b <img src=x> `c`")
    from edgequant import tracking

    told = tracking.find_runs(workflow="report")[0]
    assert told.name == "report a|b <img src=x> `c`" and "<img" not in told.tags["mlflow.note.content"]
    return said


def pictures(place: Place) -> str:
    said = report(place)
    plots = next(place.folder.rglob("artifacts/plots"))
    assert {path.suffix for path in plots.iterdir()} == {".html", ".png"}
    assert all("cdn" not in path.read_text()[:2000] for path in plots.glob("*.html"))
    return said


def own_view(place: Place) -> str:
    from edgequant import tracking

    stored(place)
    key = f"mlflow.sharedViewState.{tracking.VIEW}"
    tracking.client().set_experiment_tag("1", key, "mine")
    said = place.edgequant("report")
    assert tracking.client().get_experiment("1").tags[key] == "mine"
    return said


EVALUATE = (
    "evaluate",
    "--evaluation.tasks",
    "[domain_perplexity]",
    "--evaluation.limit",
    "4",
    "--evaluation.window",
    "64",
)


def evaluated(place: Place, status: str = "FINISHED") -> tuple[str, Path]:
    """A run of `evaluate` of a folder, as one that ended so would have left it; its id and the folder."""
    from edgequant import tracking

    folder = Path(shutil.copytree(place.tiny_folder, place.folder / "mine"))
    place.edgequant(*EVALUATE, "--model", "mine")
    (found,) = tracking.find_runs(workflow="evaluate")
    tracking.client().update_run(found.id, status)
    return found.id, folder


def remove_runs() -> None:
    from edgequant import tracking

    for run in tracking.find_runs():
        tracking.client().delete_run(run.id)


def resumed(place: Place) -> str:
    return place.edgequant(*EVALUATE, "--model", "mine", "--resume", "true")


def nothing_to_resume(place: Place) -> str:
    from edgequant import tracking

    evaluated(place)
    said = resumed(place)
    assert len(tracking.find_runs(workflow="evaluate")) == 2
    return said


def alive(place: Place) -> str:
    from edgequant import tracking

    live, _ = evaluated(place, "RUNNING")
    said = resumed(place)
    assert [(run.id, run.status) for run in tracking.find_runs(workflow="evaluate")] == [(live, "RUNNING")]
    remove_runs()
    return said


def changed_meanwhile(place: Place) -> str:
    from edgequant import tracking

    killed, folder = evaluated(place, "KILLED")
    with (folder / "config.json").open("a") as config:
        config.write("\n")
    said = resumed(place)
    assert [(run.id, run.status) for run in tracking.find_runs(workflow="evaluate")] == [(killed, "KILLED")]
    remove_runs()
    return said


def unchanged(place: Place) -> str:
    from edgequant import tracking

    killed, _ = evaluated(place, "KILLED")
    said = resumed(place)
    assert [(run.id, run.status) for run in tracking.find_runs(workflow="evaluate")] == [(killed, "FINISHED")]
    return said


def impatient(place: Place) -> str:
    with mock.patch.dict(os.environ, EDGEQUANT_TRACKING_PATIENCE="5m"):
        return place.edgequant("report")


def on_a_full_disk(place: Place) -> str:
    """As a tmpfs has it: what is written finds no room."""
    with mock.patch.object(Path, "replace", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        return place.edgequant("corpus", "--model", "tiny")


SITUATIONS = [
    Situation(
        "two measured models", "report", "told", "... 58.0 (55.0 to 60.5) ...", report,
    ),
    Situation(
        "runs of an earlier version, whose bounds are metrics", "report", "told", "... 58.0 (55.0 to 60.5) ...",
        lambda place: report(place, bounds="metrics"),
    ),
    Situation(
        "runs whose metrics.json is damaged", "report", "told",
        "warning: some rows have no confidence interval for squad/f1, and are no evidence by it",
        lambda place: report(place, bounds="damaged"),
    ),
    Situation(
        "an environment that is not activated", "report", "told", "show  .venv/bin/mlflow ui --backend-store-uri ...",
        not_activated,
    ),
    Situation(
        "a title that looks like markup", "report --title TITLE", "told", "run   http://127.0.0.1:5000/#/experiments/...",
        title_like_markup,
    ),
    Situation(
        "a machine without a network", "report", "told",
        "table http://...workflowType=machine_learning&viewStateShareKey=edgequant", pictures,
    ),
    Situation(
        "an experiment whose view somebody has changed", "report", "told", "run   http://...?workflowType=machine_learning",
        own_view,
    ),
    Situation(
        "a run that was killed", "evaluate --model mine --resume true", "told",
        "resume: goes on with run ... (evaluate mine), which is KILLED", unchanged,
    ),
    Situation(
        "no run that was interrupted", "evaluate --model mine --resume true", "told",
        "resume: no interrupted run of this configuration (the last one, ..., is FINISHED); begins anew",
        nothing_to_resume,
    ),
    Situation(
        "a run that is still at work", "evaluate --model mine --resume true", "refused",
        "edgequant evaluate: run ... is still running (process ..., last sign of life ... s ago); wait ...",
        alive,
    ),
    Situation(
        "a model that was changed after its run was killed", "evaluate --model mine --resume true", "refused",
        "edgequant evaluate: model ... has changed since run ... was interrupted, which cannot go on with it; ...",
        changed_meanwhile,
    ),
    Situation(
        "a patience that is no number of seconds", "EDGEQUANT_TRACKING_PATIENCE=5m report", "refused",
        "edgequant report: EDGEQUANT_TRACKING_PATIENCE must be a number of seconds, 0 or more, got '5m'; leave ...",
        impatient,
    ),
    Situation(
        "a folder of entries that is not there", "sync --folder nope", "refused",
        "edgequant sync: folder 'nope' not found; name a run's, such as outputs/qat/RUN_ID, or leave it out",
        lambda place: place.edgequant("sync", "--folder", "nope"),
    ),
    Situation(
        "a disk that fills up", "corpus", "ended",
        "edgequant corpus: '...' could not be written: the disk is full (... bytes free); free some ...",
        on_a_full_disk,
    ),
]  # fmt: skip
