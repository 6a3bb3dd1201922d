"""A benchmark is one file: one of another package is measured, searched, shown and listed like those of edgequant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "flood_cloze"
# The one file.
SOURCE = """
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.statistics.sampling import draw_questions
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Task

ROWS = [
    {"premise": "The river rose, so", "endings": [" they left", " they slept"], "answer": 0},
    {"premise": "The well was dry, so", "endings": [" they sang", " they dug"], "answer": 1},
    {"premise": "The bridge fell, so", "endings": [" they took the boat", " they drove"], "answer": 0},
    {"premise": "The roof leaked, so", "endings": [" they cooked", " they moved"], "answer": 1},
]


def score(model, data, settings):
    rows = draw_questions(data["flood_cloze"], "flood_cloze", settings.limit, settings.seed)
    choices = [model.encode_choices([row["premise"]], row["endings"])[0] for row in rows]
    scores = [scores for _, scores in sorted(model.log_likelihoods(choices))]
    items = [
        {"id": row["id"], "margin": both[row["answer"]] - both[1 - row["answer"]]}
        for row, both in zip(rows, scores, strict=True)
    ]
    right = [100.0 * (item["margin"] > 0) for item in items]
    return Evaluation.of_items("flood_cloze", items, Bootstrap.of(settings).mean("cloze/accuracy", right))


CLOZE = Task(
    name="flood_cloze",
    group="cloze",
    score=score,
    data=(DataSet(name="flood_cloze", load=lambda split, data_dir: ROWS if split == "test" else None),),
    protocol="The likelier of two endings of a sentence about a flood.",
    display={"cloze/accuracy": Metric("cloze of floods", "%", "higher")},
)
"""


def installed(folder: Path, source: str = SOURCE, name: str = PACKAGE) -> Path:
    """A folder for sys.path with a package of one file and what pip writes beside it."""
    (folder / f"{name}.py").write_text(source)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[edgequant.tasks]\n{name} = {name}:CLOZE\n")
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def with_package(environment, package) -> dict[str, str]:
    return environment | {"PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(package)])}


def python(program: str, environment: dict[str, str], folder: Path) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_evaluate_measures_shows_and_files_it(edgequant, with_package, tmp_path):
    only = ["--model", "tiny", "--device", "cpu", "--evaluation.tasks", "[flood_cloze]", "--cache", "false"]
    done = edgequant("evaluate", *only, PYTHONPATH=with_package["PYTHONPATH"], timeout=240)
    assert done.returncode == 0, done.stderr
    assert "cloze of floods (%)" in done.stdout
    program = """
import json
from edgequant import tracking
runs = [run for run in tracking.find_runs() if "cloze/accuracy" in run.metrics]
store = tracking.client()
nested = next(run for run in runs if "mlflow.parentRunId" in run.tags)
print(json.dumps([
    [run.metrics["cloze/accuracy"] for run in runs],
    [(each.dataset.name, json.loads(each.dataset.source)["tags"]) for each in
     store.get_run(nested.id).inputs.dataset_inputs],
    [file.path for file in store.list_artifacts(nested.id, "items")],
]))
"""
    accuracies, inputs, items = json.loads(python(program, with_package, tmp_path))
    assert len(accuracies) == 2 and accuracies[0] == accuracies[1] and accuracies[0] in (0.0, 25.0, 50.0, 75.0, 100.0)
    assert inputs == [["flood_cloze", {"source": PACKAGE, "rows": "4"}]]
    assert items == ["items/flood_cloze.json"]


def test_help_lists_it_with_its_protocol_and_a_typing_error_finds_it(edgequant, with_package):
    paths = {"PYTHONPATH": with_package["PYTHONPATH"]}
    told = edgequant("evaluate", "--help", **paths).stdout
    assert "  flood_cloze: The likelier of two endings of a sentence about a flood.\n" in told
    assert "\n  boolq: BoolQ validation" in told
    done = edgequant("evaluate", "--model", "tiny", "--evaluation.tasks", "[flood_close]", **paths)
    assert done.returncode == 2 and "'flood_close' is unknown. Did you mean flood_cloze?" in done.stderr


def test_it_is_shown_in_reports_searched_for_and_not_measured_unasked(with_package, tmp_path):
    program = """
import json
from dataclasses import replace
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.reporting.columns import columns
from edgequant.reporting.plots import bars, figures
from edgequant.reporting.protocols import protocols_for
from edgequant.workflows.steps.data import evaluation_data
from edgequant.workflows.steps.measure import headline, quality_only
from edgequant_tune.objective_tasks import check_objectives, trial_evaluation
from edgequant_tune.objectives import read_objectives
from edgequant_tune.scoring.selection import selection
rows = [{"model": "m", "variant": v, "size/checkpoint_gb": s, "cloze/accuracy": a, "latency/decode_ms_per_token": 1.0,
         "cloze/accuracy_ci_low": a - 5, "cloze/accuracy_ci_high": a + 5}
        for v, s, a in (("baseline", 1.0, 75.0), ("ptq", 0.5, 50.0))]
objectives = read_objectives(["cloze/accuracy"])
check_objectives(objectives)
data = evaluation_data(("flood_cloze",), None)
asked = EvaluationSettings(tasks=("flood_cloze", "latency"))
print(json.dumps({
    "columns": [column.heading for column in columns(rows)],
    "best": sorted(next(c for c in columns(rows) if c.key == "cloze/accuracy").best),
    "figures": sorted(figures(rows)),
    "title": bars(rows, "cloze/accuracy").layout.title.text,
    "protocol": protocols_for(["cloze/accuracy"]),
    "mode": objectives[0].mode,
    "trial": trial_evaluation(EvaluationSettings(), objectives).tasks,
    "selection": len(selection(data, ("flood_cloze",), "disaster", None).select["flood_cloze"]),
    "headline": headline({"cloze/accuracy": 1.0, "cloze/accuracy_ci_low": 0.5, "cloze/other": 2.0}),
    "references": quality_only(asked).tasks,
    "unasked": EvaluationSettings().tasks,
}))
"""
    seen = json.loads(python(program, with_package, tmp_path))
    assert seen["columns"] == ["model", "variant", "cloze of floods (%)", "size (GB)", "decode ms/token"]
    assert seen["best"] == [0] and seen["mode"] == "max"
    assert {"cloze-accuracy", "cloze-accuracy-against-size-checkpoint-gb"} <= set(seen["figures"])
    assert seen["title"] == "cloze of floods (%)"
    assert seen["protocol"] == {"cloze": "The likelier of two endings of a sentence about a flood."}
    assert seen["trial"] == ["domain_perplexity", "flood_cloze"]
    assert 0 < seen["selection"] < 4, "a half of its rows, for want of another split"
    assert seen["headline"] == {"cloze/accuracy": 1.0, "cloze/accuracy_ci_low": 0.5}
    assert seen["references"] == ["flood_cloze"]
    assert "flood_cloze" not in seen["unasked"] and "boolq" in seen["unasked"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SOURCE.replace('group="cloze"', 'group="boolq"').replace("cloze/accuracy", "boolq/accuracy"), "boolq"),
        (SOURCE.replace('DataSet(name="flood_cloze"', 'DataSet(name="squad"'), "'squad' must have a name of its own"),
        (SOURCE.replace('"cloze/accuracy": Metric', '"accuracy": Metric'), "must begin with 'cloze/'"),
        ("raise RuntimeError('no such thing')", "no such thing"),
        ("CLOZE = 3", "must be a Task, got int"),
    ],
    ids=["metrics of another", "data of another", "metric outside its group", "broken", "no task"],
)
def test_a_package_that_cannot_be_right_is_named_and_breaks_nothing_else(source, said, environment, tmp_path):
    folder = installed(tmp_path, source)
    paths = os.pathsep.join([environment["PYTHONPATH"], str(folder)])
    program = """
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.reporting.columns import columns
EvaluationSettings(tasks=("boolq",))
shown = columns([{"boolq/accuracy": 1.0, "cloze/x": 2.0}])
assert [column.heading for column in shown] == ["BoolQ accuracy (%)", "cloze x"]
try:
    EvaluationSettings(tasks=("flood_cloze",))
except UserError as error:
    print(error)
"""
    assert said in python(program, environment | {"PYTHONPATH": paths}, tmp_path)


def test_metrics_outside_a_tasks_group_are_refused(small_model, byte_tokenizer, monkeypatch):
    from edgequant.errors import UserError
    from edgequant.evaluation import suite
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.tasks.task import Evaluation, Task

    stray = Task(name="stray", score=lambda *_: Evaluation({"other/accuracy": 1.0}), protocol="", display={})
    monkeypatch.setattr(suite, "find_task", lambda name: stray)
    with pytest.raises(UserError, match="task stray: metric 'other/accuracy' must begin with 'stray/'"):
        suite.evaluate_model(small_model("llama"), byte_tokenizer, {}, EvaluationSettings(tasks=("boolq",)))
