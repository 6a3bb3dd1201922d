"""The workflow `export`: a file that reads back, its figures in the run, bad configuration refused at once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.workflows.export import check_configuration, default_model, export


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")


def only_run() -> tracking.FinishedRun:
    (run,) = tracking.find_runs(workflow="export")
    return run


def test_tiny_is_exported_measured_and_logged(tmp_path, capsys) -> None:
    export(model="tiny", output=str(tmp_path / "out"))
    file = tmp_path / "out" / "tiny-q8_0.gguf"
    run = only_run()
    size = file.stat().st_size
    assert run.status == "FINISHED"
    assert run.metrics["size/checkpoint_gb"] == pytest.approx(size / 1e9)
    assert run.metrics["size/reduction_vs_fp16"] == pytest.approx(
        100 * (1 - size / (2 * models.load("tiny").model.num_parameters()))
    )
    assert run.metrics["parity/argmax_agreement"] > 0.95
    assert run.tags["edgequant.gguf_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert tracking.download(f"runs:/{run.id}/gguf/tiny-q8_0.gguf").read_bytes() == file.read_bytes()
    (row,) = json.loads(tracking.download(f"runs:/{run.id}/summary.json").read_text())
    assert row["format"] == "q8_0" and Path(row["file"]) == file
    assert f"llama-cli -m {file}" in capsys.readouterr().out


def test_a_file_over_the_limit_stays_local(tmp_path) -> None:
    export(model="tiny", output=str(tmp_path / "out"), upload_limit_mb=0.1, check=False)
    artifacts = [entry.path for entry in tracking.client().list_artifacts(only_run().id)]
    assert "gguf" not in artifacts and (tmp_path / "out" / "tiny-q8_0.gguf").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q7_k", None, 1.0), "format 'q7_k'.*q8_0"),
        (("q8_0", "int3", 1.0), "embedding_format 'int3'.*q8_0"),
        (("q8_0", None, -1.0), "upload_limit_mb -1.0"),
    ],
)
def test_bad_configuration_is_refused_by_name(arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_configuration(*arguments)


def test_without_a_model_the_embedded_one_the_newest_version_or_the_champion_is_taken(tmp_path, capsys) -> None:
    assert default_model() == "smollm2-135m"
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with tracking.workflow_run("qat", {}):
        for _ in range(2):
            tracking.register_checkpoint(tmp_path / "checkpoint", "edgequant-tiny", metrics={}, tags={})
    assert default_model() == "models:/edgequant-tiny/2"
    tracking.client().set_registered_model_alias("edgequant-tiny", "champion", "1")
    assert default_model() == "models:/edgequant-tiny/1"
    assert "newest champion" in capsys.readouterr().out
