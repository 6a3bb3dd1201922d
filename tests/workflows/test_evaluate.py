"""`evaluate`: one model or a prediction file in, metrics, items, data-set inputs and a table out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.models import resolve
from edgequant.workflows.evaluate import evaluate, resolved_settings
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.validate import check_window

QUICK = EvaluationSettings(
    tasks=("perplexity", "boolq", "squad", "latency"),
    window=256,
    max_new_tokens=4,
    latency_prompt_lengths=(16,),
    latency_new_tokens=3,
    latency_repetitions=2,
    latency_warmup=0,
    bootstrap_resamples=50,
)


def _runs(client: Any) -> tuple[Any, Any]:
    """The workflow's run and its one nested run."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    (child,) = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, child


def test_a_model_leaves_metrics_items_predictions_and_data_set_inputs(store, cache, data_dir, tiny_folder, capsys):
    evaluate(
        model=str(tiny_folder),
        evaluation=QUICK,
        limit=8,
        run=RunSettings(data_dir=str(data_dir), device="cpu", dtype="float32"),
    )
    parent, child = _runs(store)
    assert parent.info.status == child.info.status == "FINISHED"
    assert child.data.tags["edgequant.variant"] == "baseline" and child.data.tags["edgequant.scheme"] == "none"
    metrics = tracking.all_metrics(child.info.run_id)
    assert metrics["boolq/items"] == metrics["squad/items"] == 8
    assert metrics["boolq/accuracy_ci_low"] <= metrics["boolq/accuracy"] <= metrics["boolq/accuracy_ci_high"]
    on_disk = (tiny_folder / "model.safetensors").stat().st_size
    assert metrics["size/checkpoint_gb"] == pytest.approx(on_disk / 1e9)
    repeated = tracking.all_metrics(parent.info.run_id)
    assert {name: repeated[name] for name in metrics} == pytest.approx(metrics)
    inputs = {item.dataset.name for item in child.inputs.dataset_inputs}
    assert {"wikitext2", "boolq", "squad", "boolq: 8 of 3270, seed 0", "squad: 8 of 10570, seed 0"} <= inputs
    files = {file.path for file in store.list_artifacts(child.info.run_id, "items")}
    assert {"items/boolq.json", "items/squad.json", "items/wikitext2.json", "items/latency.json"} <= files
    kept = store.download_artifacts(child.info.run_id, "squad_predictions.json")
    assert len(json.loads(Path(kept).read_text())) == 8
    assert "BoolQ accuracy" in capsys.readouterr().out


def test_a_second_evaluation_reads_the_kept_scores(store, cache, data_dir, tiny_folder):
    settings = EvaluationSettings(tasks=("boolq",), bootstrap_resamples=20)
    for _ in range(2):
        evaluate(
            model=str(tiny_folder), evaluation=settings, limit=4, run=RunSettings(data_dir=str(data_dir), device="cpu")
        )
    notes = []
    for run in store.search_runs([e.experiment_id for e in store.search_experiments()]):
        if any(file.path == "notes.txt" for file in store.list_artifacts(run.info.run_id)):
            notes.append(Path(store.download_artifacts(run.info.run_id, "notes.txt")).read_text())
    assert sum("4 scores were read" in note for note in notes) == 1


def test_an_official_prediction_file_is_scored_without_a_model(store, data_dir, capsys):
    path = data_dir / "squad" / "predictions" / "bert-ensemble.json"
    evaluate(squad_predictions=str(path), evaluation=QUICK, run=RunSettings(data_dir=str(data_dir)))
    printed = capsys.readouterr().out
    assert "squad/exact_match 86.206" in printed and "squad/f1 92.196" in printed


def test_what_is_not_there_is_refused_before_anything_is_loaded(store, tmp_path):
    with pytest.raises(UserError, match=r"squad_predictions must be a JSON file .* not found"):
        evaluate(squad_predictions=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"model for runtime llama\.cpp must be a \.gguf file"):
        evaluate(model="tiny", runtime="llama.cpp")
    with pytest.raises(UserError, match="nothing-like-it"):
        evaluate(model="nothing-like-it")
    assert not store.search_experiments(filter_string="name = 'edgequant'")


def test_the_command_lines_limit_and_seed_win_and_no_cache_means_none(cache):
    settings = EvaluationSettings(limit=9, seed=1)
    assert resolved_settings(settings, limit=None, seed=None, cache=True).limit == 9
    changed = resolved_settings(settings, limit=3, seed=2, cache=False)
    assert (changed.limit, changed.seed, changed.cache_dir) == (3, 2, None)
    assert resolved_settings(settings, limit=None, seed=None, cache=True).cache_dir == str(cache / "scores")


def test_a_wrong_setting_on_the_command_line_is_one_line_and_status_two(edgequant):
    done = edgequant("evaluate", "--model", "tiny", "--evaluation.wikitext_protocol", "lines")
    assert done.returncode == 2
    assert "wikitext_protocol" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("runtime", "threads", "said"),
    [("torch", 2, "threads must be left out with runtime torch"), ("llama.cpp", 0, "threads must be 1 or more, got 0")],
)
def test_threads_that_cannot_be_are_refused(runtime, threads, said):
    with pytest.raises(UserError, match=said):
        evaluate(model="tiny", runtime=runtime, threads=threads)


def test_lengths_beyond_the_context_are_refused_before_a_run_and_defaults_are_shortened(
    store, tiny_folder, tmp_path, capsys
):
    folder = shutil.copytree(tiny_folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    timed = EvaluationSettings(tasks=("latency",), latency_prompt_lengths=(60,), latency_new_tokens=8)
    with pytest.raises(UserError, match=r"latency needs 68 tokens of context .* has 64; set shorter evaluation\.la"):
        evaluate(model=str(folder), evaluation=timed, run=RunSettings(device="cpu"))
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    assert store.search_runs(experiments) == []
    check_window(resolve(str(folder)), replace(timed, tasks=("boolq",)))
    assert capsys.readouterr().out == ""
    check_window(resolve(str(folder)), EvaluationSettings(tasks=("latency",)))
    said = "latency: the default lengths are shortened to the context of short, 64 tokens\n"
    assert capsys.readouterr().out == said
