"""What commit 02e4383 wrote, before the packages were rearranged: checkpoints, a registered version, a score cache."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest
import torch

from edgequant import models
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.suite import evaluate_model
from edgequant.quantization import checkpoint
from edgequant.workflows.steps.data import evaluation_data
from edgequant_registry.workflow import promote

CHECKPOINTS = ("w8a8-static", "q4_0", "w3-g64")


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> Path:
    """The unpacked fixture: checkpoints/, logits.json (of the last of 40 tokens), mlflow.db, mlruns/, scores/."""
    folder = tmp_path_factory.mktemp("made")
    with tarfile.open(root / "tests" / "fixtures" / "made_by_02e4383.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def last_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits[0, -1].double()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_its_checkpoints_load_and_predict_the_same(made, name):
    expected = torch.tensor(json.loads((made / "logits.json").read_text())[name], dtype=torch.float64)
    folder = made / "checkpoints" / name
    assert checkpoint.open_checkpoint(folder).scheme.name == name
    found = last_logits(models.load(str(folder), device="cpu").model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """Its tracking store, moved here: `mlruns` stood under /before."""
    shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db")
    shutil.copytree(made / "mlruns", tmp_path / "mlruns")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, '/before', ?)", (str(tmp_path),))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_registered_version_loads_and_is_judged_by_its_gates(made, store, capsys):
    loaded = models.load("models:/edgequant-tiny/1", device="cpu")
    expected = torch.tensor(json.loads((made / "logits.json").read_text())["registered"], dtype=torch.float64)
    torch.testing.assert_close(last_logits(loaded.model), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    with contextlib.suppress(SystemExit):
        promote(model="tiny", dry_run=True)
    told = capsys.readouterr().out
    told = " ".join(told.split())
    assert "passed size/reduction_vs_fp16 70.12 % is at least 70 %" in told
    assert "a version without evidence has no baseline" in told, "what it had beside its tags is not taken from these"


def test_its_scores_are_never_read(made, tmp_path):
    folder = shutil.copytree(made / "scores", tmp_path / "scores")
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    settings = EvaluationSettings(
        tasks=("domain_perplexity",), limit=20, window=256, bootstrap_resamples=20, cache_dir=str(folder)
    )
    loaded = models.load("tiny", dtype="float32", device="cpu")
    found = evaluate_model(loaded.model, loaded.tokenizer, evaluation_data(settings.tasks, None), settings)
    assert before and not [note for note in found.notes if "were read from" in note]
    assert {path: path.read_bytes() for path in before} == before
    again = evaluate_model(loaded.model, loaded.tokenizer, evaluation_data(settings.tasks, None), settings)
    assert [note for note in again.notes if "were read from" in note]  # its own it does read
