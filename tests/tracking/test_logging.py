"""What a run records is in the store as others read it."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from stored_artifacts import artifact

from edgequant import redaction, tracking
from edgequant.tracking.environment import git_tags


def test_the_resolved_configuration_is_filed_as_parameters_and_as_yaml(store):
    config = {"model": "tiny", "training": {"steps": 3, "nested": {"deep": None}}, "measures": ("a", "b")}
    with tracking.workflow_run("qat", config) as run:
        pass
    params = store.get_run(run.id).data.params
    assert params["cfg.training.steps"] == "3" and params["cfg.training.nested.deep"] == "None"
    assert yaml.safe_load(artifact(run.id, "config.yaml")) == json.loads(json.dumps(config))


def test_commit_environment_and_process_are_filed(store, root):
    with tracking.workflow_run("qat", {}) as run:
        pass
    tags = store.get_run(run.id).data.tags
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    assert tags.get("mlflow.source.git.commit", "") == commit
    if commit:
        assert tags["edgequant.git_dirty"] in ("true", "false")
    environment = json.loads(artifact(run.id, "environment.json"))
    for package in ("torch", "transformers", "mlflow"):
        assert environment["packages"][package] == metadata.version(package)
    assert environment["cpu_count"] == os.cpu_count()


def test_a_run_takes_no_lock_in_the_repository_that_it_looks_at(tmp_path, monkeypatch):
    (tmp_path / "git").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho abc\n')
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert git_tags()["mlflow.source.git.commit"] == "abc"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2 and all(line.startswith("--no-optional-locks ") for line in asked)  # a kill would leave it


def test_data_sets_are_inputs_with_digest_source_and_context(store):
    digest = "0123456789abcdef" * 4
    with tracking.workflow_run("evaluate", {}) as run:
        tracking.log_dataset("boolq", digest, "/data/boolq", rows=3270, context="evaluation")
    (given,) = store.get_run(run.id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("boolq", digest[:36])
    assert {tag.key: tag.value for tag in given.tags}["mlflow.data.context"] == "evaluation"
    assert "/data/boolq" in given.dataset.source and "3270" in given.dataset.source


def test_a_data_set_outside_a_run_is_not_an_error(store):
    tracking.log_dataset("boolq", "0" * 64, "bundled", rows=1, context="training")


def test_tables_summary_text_and_folders_are_artifacts(store, tmp_path):
    rows = [{"id": "a", "correct": True}, {"id": "b", "f1": 0.5}]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_text("x")
    with tracking.workflow_run("evaluate", {}) as run:
        for _ in range(2):  # as of a run that was killed behind its table and goes on
            tracking.log_table(rows, "items/boolq.json")
        tracking.log_table([], "items/none.json")
        tracking.log_summary([{"model": "tiny", "boolq/accuracy": 0.5}])
        tracking.log_text("remark", "notes.txt")
        tracking.log_folder(tmp_path / "folder", "adapter")
    table = json.loads(artifact(run.id, "items/boolq.json"))
    assert table["columns"] == ["id", "correct", "f1"] and len(table["data"]) == 2
    assert list(mlflow.load_table("items/boolq.json", [run.id])["id"]) == ["a", "b"]  # by MLflow's own tag
    assert json.loads(artifact(run.id, "summary.json")) == [{"model": "tiny", "boolq/accuracy": 0.5}]
    assert artifact(run.id, "notes.txt") == "remark"
    assert artifact(run.id, "adapter/x.txt") == "x"


def test_any_cell_becomes_json_and_no_secret_is_filed(store):
    link = '<a href="http://h/?token=abc&x=1">'
    cells = {
        "link": link, "nan": np.float32("nan"), "many": np.array([1, 2]), "tensor": torch.tensor(0.5),
        "inner": {"loss": float("inf"), "id": np.int64(3)}, "path": Path("a"), "yes": True, "none": None,
    }  # fmt: skip
    with tracking.workflow_run("evaluate", {}) as run:
        tracking.log_table([cells], "cells.json")
    table = json.loads(artifact(run.id, "cells.json"))
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert "abc" not in row.pop("link")
    assert row == {
        "nan": None, "many": [1, 2], "inner": {"loss": None, "id": 3}, "tensor": 0.5, "path": "a", "yes": True,
        "none": None,
    }  # fmt: skip


def test_the_environment_is_looked_through_once_for_a_table(store, monkeypatch):
    """And not for each of its cells, of which an evaluation has thousands."""
    looked: list[int] = []
    monkeypatch.setattr(redaction, "_secrets", lambda: looked.append(1) or {"swordfish"})
    with tracking.workflow_run("evaluate", {}) as run:
        looked.clear()
        tracking.log_table([{"id": f"a swordfish {at}"} for at in range(50)], "cells.json")
        assert len(looked) == 1
    assert json.loads(artifact(run.id, "cells.json"))["data"][49] == ["a *** 49"]


def test_metrics_keep_their_steps(store):
    with tracking.workflow_run("qat", {}) as run:
        for step in (1, 2, 3):
            tracking.log_metrics({"train/loss": 10 / step}, step=step)
    history = [(m.step, m.value) for m in store.get_metric_history(run.id, "train/loss")]
    assert history == [(1, 10.0), (2, 5.0), (3, pytest.approx(10 / 3))]


def test_a_long_parameter_is_cut_and_not_refused(store):
    with tracking.workflow_run("corpus", {"text": "x" * 9000}) as run:
        pass
    assert store.get_run(run.id).data.params["cfg.text"] == "x" * 6000


@pytest.mark.parametrize(
    ("nested", "flat"), [({"a": {"b": {"c": 1}}, "d": [1, 2]}, {"a.b.c": 1, "d": [1, 2]}), ({}, {}), ({"a": {}}, {})]
)
def test_nested_configuration_becomes_dotted_names(nested, flat):
    assert tracking.flatten(nested) == flat


def test_a_metric_that_is_not_finite_is_told_and_not_stored(store, capsys):
    """The database would keep infinity as 1.797e308, which passes for a number."""
    with tracking.workflow_run("evaluate", {}) as run:
        tracking.log_metrics({"a/good": 1.0, "a/none": float("nan"), "a/more": float("inf")})
    data = store.get_run(run.id).data
    assert {name: value for name, value in data.metrics.items() if name.startswith("a/")} == {"a/good": 1.0}
    assert data.tags["edgequant.not_finite"] == "a/none nan, a/more inf"
    assert "not finite, so not logged: a/none nan, a/more inf" in capsys.readouterr().out
