"""What ships, in llama.cpp: timed by every workflow that makes or is given a file, within a device's limits, gated."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from small_models import checkpoint_of, small

from edgequant import models, tracking
from edgequant.__main__ import main
from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.library import version
from edgequant.export.gguf.write import write_gguf
from edgequant.machine.cores import physical_cores
from edgequant.models.onnx import library
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.workflows import shipping
from edgequant.workflows.evaluate import evaluate
from edgequant.workflows.export import export
from edgequant.workflows.ptq import ptq
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings
from edgequant_registry.workflow import PromotionRefusedError, promote

pytestmark = pytest.mark.skipif(version() is None, reason="xllamacpp is not installed")

SMALL = CalibrationSettings(num_calibration_samples=4, sequence_length=32)
CPU = RunSettings(device="cpu", dtype="float32")
MEDIANS = ("load_ms", "time_to_first_token_ms", "prefill_ms_per_token", "decode_ms_per_token")
WITHIN = 30  # seconds that issue 13 grants a command on `tiny`


@pytest.fixture(autouse=True)
def own_store(store) -> Any:
    return store


@pytest.fixture
def timed(quick):
    """Five repetitions, as by default, of which medians have bounds."""
    return replace(quick, latency_repetitions=5, tasks=("domain_perplexity", "latency"))


def device(folder: Path, **limits: Any) -> str:
    file = folder / "device.yaml"
    file.write_text(json.dumps({"threads": 1, "memory_gb": 1, "disk_gb": 1} | limits))  # JSON is YAML
    return str(file)


def rounded(evaluation, tmp_path, **options: Any) -> Any:
    usual: dict[str, Any] = {"scheme": "q4_0+embq4_0", "calibration": SMALL, "output": str(tmp_path / "made")}
    return ptq(model="tiny", evaluation=evaluation, run=CPU, **usual | options)


@pytest.mark.long
def test_ptq_times_what_ships_in_metrics_tags_table_and_version(timed, tmp_path, capsys) -> None:
    result = rounded(timed, tmp_path, register=True, export="gguf", threads=1)
    (file,) = (tmp_path / "made").glob("*.gguf")
    for name in MEDIANS:
        low, value, high = (result.metrics[f"deploy/{name}{end}"] for end in ("_ci_low", "", "_ci_high"))
        assert 0 < low <= value <= high
    prefill, first = (result.metrics[f"deploy/{name}"] for name in ("prefill_ms_per_token", "time_to_first_token_ms"))
    assert first == pytest.approx(8 * prefill), "of the 8 tokens that the settings ask for"
    assert result.metrics["deploy/threads"] == 1
    assert file.stat().st_size / 1e9 < result.metrics["deploy/peak_rss_gb"] < 0.2
    row = result.rows[1]
    assert {"deploy/load_ms", "deploy/peak_rss_gb", "deploy/threads", "deploy/decode_ms_per_token_ci_low"} <= set(row)
    assert "deploy/decode_ms_per_token" not in result.rows[0], "the baseline ships nothing"
    (run,) = tracking.find_runs(workflow="ptq")
    assert run.tags["edgequant.deploy_runtime"] == f"xllamacpp {version()}" and "deploy/load_ms" in run.metrics
    (found,) = tracking.client().search_model_versions("name = 'edgequant-tiny'")
    assert float(found.tags["deploy/decode_ms_per_token"]) == pytest.approx(row["deploy/decode_ms_per_token"])
    assert found.tags["edgequant.deploy_format"] == "q4_0" and len(found.tags["edgequant.gguf_sha256"]) == 64
    assert not list(tmp_path.glob("**/.shipped*")) and "shipped decode ms/token" in capsys.readouterr().out


@pytest.mark.long
def test_the_file_that_is_timed_is_the_one_that_export_writes_and_is_gone_afterwards(quick, tmp_path) -> None:
    result = rounded(quick, tmp_path)
    assert not list((tmp_path / "made").glob("*.gguf")) and "deploy/decode_ms_per_token" in result.metrics
    (run,) = tracking.find_runs(workflow="ptq")
    export(model=str(tmp_path / "made"), output=str(tmp_path / "out"), check=False)
    (exported,) = tracking.find_runs(workflow="export")
    assert run.tags["edgequant.gguf_sha256"] == exported.tags["edgequant.gguf_sha256"]
    assert result.metrics["deploy/size_gb"] == exported.metrics["deploy/size_gb"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("tasks", "runtime", "why"),
    [
        (("domain_perplexity",), True, "latency is not among evaluation.tasks"),
        (("domain_perplexity", "latency"), False, "xllamacpp is not installed (pip install xllamacpp=="),
    ],
)
def test_times_are_left_out_with_a_line_that_says_why(quick, tmp_path, capsys, monkeypatch, tasks, runtime, why):
    if not runtime:
        monkeypatch.setattr(shipping, "version", lambda: None)
    result = rounded(replace(quick, tasks=tasks), tmp_path)
    assert f"deploy/decode_ms_per_token and its like were left out: {why}" in capsys.readouterr().out
    assert {name for name in result.metrics if "deploy/" in name} == {"deploy/size_gb", "deploy/reduction_vs_fp16"}


@pytest.mark.long
def test_a_form_without_a_runtime_is_said_to_be_untimed_and_not_known_to_fit(quick, tmp_path, capsys) -> None:
    result = rounded(quick, tmp_path, scheme="w8a8-static", device_profile="edge-2c-1g")
    said = capsys.readouterr().out
    assert "no runtime here runs compressed-tensors" in said and "not known whether it fits" in said
    assert "deploy/fits" not in result.metrics and result.metrics["deploy/disk_headroom_gb"] > 0.49


@pytest.mark.long
def test_qat_says_whether_its_file_fits_and_a_misfit_fails_its_gate(quick, short, tmp_path, capsys) -> None:
    """A gigabyte holds `tiny` and llama.cpp; 10 MB do not hold the interpreter."""
    options: dict[str, Any] = {"model": "tiny", "scheme": "q4_0+embq4_0", "run": CPU, "evaluation": quick}
    options |= {"training": replace(short, steps=2)}
    fitting = qat(**options, device_profile=device(tmp_path))
    said = capsys.readouterr().out
    assert fitting.metrics["deploy/fits"] == 1 and "device profile device: fits: memory" in said
    assert "emulates neither another instruction set nor memory bandwidth" in said
    assert fitting.metrics["deploy/headroom_gb"] == pytest.approx(1 - fitting.metrics["deploy/peak_rss_gb"])
    assert "peak memory" in said and "compared with" in said, "how the limit was applied"
    assert fitting.metrics["deploy/threads"] == 1
    beyond = qat(**options, device_profile=device(tmp_path, memory_gb=0.01))
    assert beyond.metrics["deploy/fits"] == 0 and beyond.metrics["deploy/headroom_gb"] < 0
    assert "does not fit, since memory is over its limit" in capsys.readouterr().out
    runs = {run.id: run.tags for run in tracking.find_runs(workflow="qat")}
    assert runs[beyond.run_id]["edgequant.device_profile"] == "device"
    assert json.loads(runs[beyond.run_id]["edgequant.device_limits"])["memory_gb"] == 0.01
    version_2 = tracking.client().get_model_version("edgequant-tiny", "2")
    assert version_2.tags["edgequant.device_profile"] == "device" and float(version_2.tags["deploy/fits"]) == 0
    with pytest.raises(PromotionRefusedError):
        promote(model="tiny", version=2)
    assert "deploy/fits 0 is not at least 1" in " ".join(capsys.readouterr().out.split())
    gates = json.loads(tracking.client().get_model_version("edgequant-tiny", "2").tags["edgequant.gates"])
    assert {gate["metric"]: gate["verdict"] for gate in gates}["deploy/fits"] == "FAILED"


@pytest.mark.long
def test_evaluate_tries_a_file_and_a_checkpoint_on_a_device_and_refuses_a_model_without_a_file(
    quick, tiny, tmp_path, capsys
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny, file, "q8_0")
    profile = device(tmp_path, min_tokens_per_second=1e9)
    for runtime in ("llama.cpp", "torch"):
        found = evaluate(model=str(file), runtime=runtime, evaluation=quick, run=CPU, device_profile=profile)
        assert found.metrics["deploy/fits"] == 0 and found.metrics["deploy/size_gb"] == file.stat().st_size / 1e9
        assert "does not fit, since decoding is under its limit" in capsys.readouterr().out
        parameters = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(file).tensors)
        assert found.metrics["deploy/reduction_vs_fp16"] == pytest.approx(
            100 - 50 * file.stat().st_size / parameters, abs=0.1
        )
    made = rounded(replace(quick, tasks=("domain_perplexity",)), tmp_path)
    found = evaluate(model=made.checkpoint, evaluation=quick, run=CPU, device_profile=device(tmp_path))
    assert found.metrics["deploy/fits"] == 1 and found.metrics["deploy/size_gb"] == made.metrics["deploy/size_gb"]
    assert "deploy/fits" not in evaluate(model=made.checkpoint, evaluation=quick, run=CPU).metrics
    with pytest.raises(UserError, match=r"device_profile .* needs a model that ships as a file.*got tiny"):
        evaluate(model="tiny", evaluation=quick, device_profile="edge-2c-1g")


@pytest.mark.long
def test_a_file_that_llama_cpp_cannot_run_costs_its_times_and_no_run(quick, tmp_path, monkeypatch, capsys) -> None:
    from edgequant.evaluation.backends.llama_cpp import timed_alone

    def refused(*_: Any, **__: Any) -> Any:
        raise UserError("tiny.gguf could not be timed in llama.cpp: it ended with code -11")

    monkeypatch.setattr(timed_alone, "time_alone", refused)
    result = rounded(quick, tmp_path, device_profile="edge-2c-1g")
    assert "it ended with code -11" in capsys.readouterr().out and "deploy/fits" not in result.metrics


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_default_lengths_are_shortened_to_the_context_of_what_ships(format, tmp_path) -> None:
    loaded = checkpoint_of(small("llama", max_position_embeddings=96), "w4-g32+emb4", tmp_path / "checkpoint")
    if format == "onnx":
        if library.missing() is not None:
            pytest.skip("onnxruntime-genai is not installed as pinned")
        from edgequant.export.onnx.write import write_onnx

        file = write_onnx(loaded, tmp_path / "onnx").path
    else:
        file = write_gguf(loaded, tmp_path / "small.gguf", "q4_1").path
    found = shipping.deploy_file(file, format, {}, shipping.TimingPlan(threads=1, repetitions=1))
    assert found.metrics["deploy/decode_ms_per_token"] > 0
    first, prefill = (found.metrics[f"deploy/{name}"] for name in ("time_to_first_token_ms", "prefill_ms_per_token"))
    assert first == pytest.approx(72 * prefill), "a quarter of the context is left for new tokens"
    assert any("72 + 24 tokens, as many as the context holds" in note for note in found.notes)
    asked = shipping.deploy_file(file, format, {}, shipping.TimingPlan(threads=1, prompt_length=100, repetitions=1))
    assert "deploy/decode_ms_per_token" not in asked.metrics and any("the model has 96" in n for n in asked.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_profile": "raspberry"}, "device_profile 'raspberry' not found"),
        ({"device_profile": "edge-2c-1g", "threads": 1}, "threads must be left out with device_profile"),
        ({"threads": 0}, "threads must be from 1 to 4096, got 0"),
    ],
)
@pytest.mark.parametrize("workflow", [ptq, qat, export])
def test_a_device_that_cannot_be_meant_is_refused_before_a_run_begins(workflow, options, message) -> None:
    with pytest.raises(UserError, match=message):
        workflow(model="tiny", **options)
    assert not [run for name in ("ptq", "qat", "export") for run in tracking.find_runs(workflow=name)]


def test_a_profile_without_a_runtime_is_refused_before_a_run_begins(monkeypatch) -> None:
    monkeypatch.setattr(shipping, "version", lambda: None)
    with pytest.raises(UserError, match=r"device_profile 'phone-4gb' needs llama.cpp.*pip install xllamacpp"):
        export(model="tiny", device_profile="phone-4gb")
    assert not tracking.find_runs(workflow="export")


def test_no_more_threads_are_taken_than_there_are_cores(monkeypatch) -> None:
    plan = shipping.plan_timing("raspberry-pi-5")
    monkeypatch.setattr(shipping, "physical_cores", lambda: 2)
    assert plan.threads_used == 2
    monkeypatch.setattr(shipping, "physical_cores", lambda: 64)
    assert plan.threads_used == 4 and shipping.plan_timing(None).threads_used == 64
    assert shipping.plan_timing(None, 3).threads_used == 3 and physical_cores() >= 1


def seconds() -> float:
    """CPU time of this process and of those that it started: less disturbed by other work than the clock."""
    return sum(os.times()[:4])


def test_export_and_evaluate_through_llama_cpp_of_tiny_take_less_than_half_a_minute(tmp_path, capsys) -> None:
    """As `mlflow run . -e export` and `evaluate --runtime llama.cpp`, in this process.

    On one thread, since those of two count twice, and on 20 questions of each set.
    """
    begun = seconds()
    assert main(["export", "--model", "tiny", "--output", "out"]) == 0
    exported = seconds()
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert main(["evaluate", "--model", str(file), "--runtime", "llama.cpp", "--threads", "1", "--limit", "20"]) == 0
    ended = seconds()
    assert exported - begun < WITHIN and ended - exported < WITHIN
    assert "shipped first token" in capsys.readouterr().out and models.resolve(str(file)).kind == "gguf"
