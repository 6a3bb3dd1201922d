"""`baseline`: identical settings for all, one nested run each, and a failed model does not stop the others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.workflows.baseline import baseline, model_sources
from edgequant.workflows.settings import RunSettings

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


@pytest.fixture
def broken_folder(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"not weights")
    return folder


def _runs(client: Any) -> list[Any]:
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_a_failed_model_is_noted_and_the_others_are_measured(
    store, cache, data_dir, tiny_folder, broken_folder, capsys
):
    models = f"{broken_folder},{tiny_folder},tiny"
    baseline(
        model=models, evaluation=QUICK, limit=4, run=RunSettings(data_dir=str(data_dir), device="cpu", dtype="float32")
    )
    runs = _runs(store)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert parent.info.status == "FINISHED"
    measured = [run for run in children if run.info.status == "FINISHED"]
    assert len(measured) == 2
    assert parent.data.tags["edgequant.failed_models"] == str(broken_folder)
    first, second = (
        {
            name: value
            for name, value in run.data.metrics.items()
            if name.split("/")[0] in ("boolq", "squad", "wikitext2")
        }
        for run in measured
    )
    assert first == second  # the same weights, once from a folder and once built: the same questions, the same scores
    plots = {file.path for file in store.list_artifacts(parent.info.run_id, "plots")}
    assert {
        "plots/boolq_accuracy.html",
        "plots/latency_decode_ms_per_token_against_size_checkpoint_gb.html",
        "plots/squad_f1_against_size_checkpoint_gb.html",
        "plots/squad_f1_against_wikitext2_perplexity.html",
    } <= plots
    summary = json.loads(Path(store.download_artifacts(parent.info.run_id, "summary.json")).read_text())
    assert [row["variant"] for row in summary] == ["baseline", "baseline", "failed"]
    assert "broken" in capsys.readouterr().out


def test_no_model_at_all_is_the_runs_failure(store, cache, data_dir, broken_folder):
    with pytest.raises(UserError, match="no model could be measured"):
        baseline(
            model=str(broken_folder), evaluation=QUICK, limit=2, run=RunSettings(data_dir=str(data_dir), device="cpu")
        )
    assert {run.info.status for run in _runs(store)} == {"FAILED"}


def test_the_next_command_names_the_source_as_it_was_given(store, cache, tiny_folder, broken_folder, tmp_path, capsys):
    folder = shutil.copytree(tiny_folder, tmp_path / "with space" / "model")
    timed = replace(QUICK, tasks=("latency",), latency_new_tokens=16)
    baseline(model=f"{broken_folder},{folder}", evaluation=timed, run=RunSettings(device="cpu", dtype="float32"))
    assert f"edgequant qat --model '{folder}'" in capsys.readouterr().out


def test_the_list_of_models_is_checked_before_anything_is_loaded():
    assert list(model_sources("tiny, smollm2-135m,tiny")) == ["tiny", "smollm2-135m"]
    with pytest.raises(UserError, match=r"model must be sources separated by commas, .* got nothing"):
        model_sources(" , ")
    with pytest.raises(UserError, match="nothing-like-it"):
        model_sources("tiny,nothing-like-it")
