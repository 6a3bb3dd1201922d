"""The workflow `export`: a file that reads back, its figures in the run, bad configuration refused at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from library_versions import needs_transformers
from peft import LoraConfig, get_peft_model
from small_models import small

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.quantization import checkpoint
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme
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
    assert f"edgequant chat --model {file}" in capsys.readouterr().out


def test_an_adapter_has_a_size_and_what_it_is_used_with_and_no_reduction(tiny, tiny_folder, tmp_path, capsys) -> None:
    adapted = get_peft_model(tiny.model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    result = export(model=str(tmp_path / "adapter"), format="lora", output=str(tmp_path / "out"))
    said = capsys.readouterr().out
    size = (tmp_path / "out" / "adapter-lora.gguf").stat().st_size / 1e9
    assert result.metrics == {"size/checkpoint_gb": size, "deploy/size_gb": size}
    assert not {name for name in only_run().metrics if "reduction" in name or "bits" in name}
    assert "reduction" not in said
    assert f"2 linears of rank 4; llama.cpp adds them to the GGUF file of {tiny_folder}" in said


def test_a_model_whose_rows_no_block_fits_is_refused_by_format_and_is_f16_by_itself(tmp_path, capsys) -> None:
    sizes = {"hidden_size": 80, "intermediate_size": 200, "num_attention_heads": 5, "num_key_value_heads": 1}
    loaded = small("llama", **sizes)
    loaded.model.save_pretrained(tmp_path / "odd")
    loaded.tokenizer.save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match="format q4_0 needs matrices with rows that 32 divides, got rows of 80, 200"):
        export(model=str(tmp_path / "odd"), format="q4_0", output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and tracking.find_runs(workflow="export") == []
    export(model=str(tmp_path / "odd"), output=str(tmp_path / "out"), check=False)
    assert (tmp_path / "out" / "odd-f16.gguf").is_file()
    assert "format: f16 (no block of 32 fits rows of 80, 200)" in capsys.readouterr().out


def test_a_file_over_the_limit_stays_local(tmp_path) -> None:
    export(model="tiny", output=str(tmp_path / "out"), upload_limit_mb=0.1, check=False)
    artifacts = [entry.path for entry in tracking.client().list_artifacts(only_run().id)]
    assert "gguf" not in artifacts and (tmp_path / "out" / "tiny-q8_0.gguf").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q7_k", None, 1.0), "format must be one of auto, q8_0.*'q7_k'"),
        (("q8_0", "int3", 1.0), "embedding_format must be one of q8_0.*'int3'"),
        (("q8_0", None, -1.0), "upload_limit_mb must be 0 .*, got -1.0"),
        (("compressed-tensors", "q8_0", 1.0), "embedding_format 'q8_0' is for GGUF files"),
        (("q8_0", "compressed-tensors", 1.0), "embedding_format must be one of .*, got 'compressed-tensors'"),
    ],
)
def test_bad_configuration_is_refused_by_name(arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_configuration(*arguments)


@pytest.fixture
def quantized(tiny, tmp_path) -> Callable[[str], Path]:
    def made(scheme: str) -> Path:
        parameters = tiny.model.num_parameters()
        quantize(tiny.model, parse_scheme(scheme))
        folder = tmp_path / scheme
        checkpoint.save(
            tiny.model, tiny.tokenizer, folder, parse_scheme(scheme), parameters=parameters, made_from="tiny"
        )
        return folder

    return made


def test_a_checkpoint_leaves_as_a_compressed_tensors_folder_measured_and_logged(quantized, tmp_path, capsys) -> None:
    needs_transformers("5.23", "read a compressed-tensors folder with a quantised embedding")
    export(model=str(quantized("w4-g32+emb4")), format="compressed-tensors", output=str(tmp_path / "out"))
    weights = tmp_path / "out" / "model.safetensors"
    run = only_run()
    assert run.metrics["size/checkpoint_gb"] == pytest.approx(weights.stat().st_size / 1e9)
    assert (run.metrics["parity/max_logit_error"], run.metrics["parity/argmax_agreement"]) == (0, 1)
    assert run.tags["edgequant.compressed_tensors_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    logged = tracking.download(f"runs:/{run.id}/compressed_tensors")
    assert (logged / "model.safetensors").read_bytes() == weights.read_bytes() and (logged / "config.json").is_file()
    (row,) = json.loads(tracking.download(f"runs:/{run.id}/summary.json").read_text())
    assert (row["scheme"], row["format"], row["file"]) == ("w4-g32+emb4", "compressed-tensors", str(tmp_path / "out"))
    assert f"edgequant evaluate --model {tmp_path / 'out'}" in capsys.readouterr().out


def test_what_cannot_be_read_back_fails_in_one_line(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: Path) -> None:
        raise UserError("model 'out' lacks tensor lm_head.weight; copy the whole folder again")

    monkeypatch.setattr("edgequant.export.parity._reader", lacking)
    with pytest.raises(UserError, match=r"cannot be read back: model 'out' lacks tensor lm_head\.weight; do") as error:
        export(model="tiny", output=str(tmp_path / "out"))
    assert "\n" not in str(error.value) and only_run().status == "FAILED"
    export(model="tiny", output=str(tmp_path / "out"), check=False)


def test_a_folder_that_an_older_transformers_cannot_read_is_noted(quantized, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("edgequant.export.parity.transformers.__version__", "5.22.1")
    source = str(quantized("w4-g32+emb4"))
    result = export(model=source, format="compressed-tensors", output=str(tmp_path / "out"))
    assert "transformers 5.22.1 reads no quantised embedding in compressed-tensors" in str(result.rows[0]["note"])
    assert "parity/max_logit_error" not in result.metrics


def test_what_is_no_checkpoint_or_fits_no_folder_is_refused_before_a_run_begins(quantized, tiny_folder) -> None:
    for source, message in (
        ("tiny", "edgequant ptq --model tiny"),
        (str(tiny_folder), "got 'tiny' without integers"),
        (str(quantized("q4_1")), "scheme q4_1 cannot be written as compressed-tensors"),
    ):
        with pytest.raises(UserError, match=message):
            export(model=source, format="compressed-tensors")
    assert not tracking.find_runs(workflow="export")


def test_without_a_model_the_embedded_one_the_newest_version_or_the_champion_is_taken(tmp_path, capsys) -> None:
    assert default_model() == "smollm2-135m"
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with tracking.workflow_run("qat", {}):
        for _ in range(2):
            tracking.register_checkpoint(tmp_path / "checkpoint", "edgequant-tiny", tags={})
    assert default_model() == "models:/edgequant-tiny/2"
    tracking.client().set_registered_model_alias("edgequant-tiny", "champion", "1")
    assert default_model() == "models:/edgequant-tiny/1"
    assert "newest champion" in capsys.readouterr().out
