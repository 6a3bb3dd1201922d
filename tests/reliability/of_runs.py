"""Runs as MLflow keeps them, and what is said of them at the end."""

from __future__ import annotations

import os
import sys
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
]  # fmt: skip
