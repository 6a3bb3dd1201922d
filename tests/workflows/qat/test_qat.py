"""The main job on `tiny`: what it compares, logs, writes and registers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open

from edgequant import api, models, tracking
from edgequant.errors import UserError
from edgequant.evaluation.suite import evaluate_model
from edgequant.quantization import checkpoint
from edgequant.quantization.qat.settings import QatSettings
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings, WorkflowResult
from edgequant.workflows.steps.data import evaluation_data

VARIANTS = ("baseline", "ptq", "control", "control-ptq", "qat")


class Finished(NamedTuple):
    """A finished qat: the store's client, the parent run, a run per variant, where it ran, what it returned."""

    client: Any
    parent: Any
    variants: dict[str, Any]
    folder: Path
    result: WorkflowResult

    @property
    def delivered(self) -> Any:
        """The run of the variant that is delivered."""
        return self.variants[self.parent.tags["edgequant.delivered"]]


TRAINABLE = {"w4a8-g32+emb4": "auto", "w8a8-static": "all"}  # so few steps train scales alone, unless asked for all


@pytest.fixture(scope="module", params=TRAINABLE)
def finished(request, open_store, tmp_path_factory, quick, short):
    folder = tmp_path_factory.mktemp("qat")
    with open_store(folder) as client:
        result = qat(
            model="tiny", scheme=request.param, adapt=True, training=short, evaluation=quick,
            qat=QatSettings(trainable=TRAINABLE[request.param]),
            run=RunSettings(device="cpu", dtype="float32", seed=3), output=str(folder / "delivered"),
        )  # fmt: skip
        found = tracking.find_runs(experiment="edgequant")
        runs = [replace(run, metrics=tracking.all_metrics(run.id)) for run in found]
        (parent,) = [run for run in runs if run.workflow == "qat"]
        children = {
            run.tags["edgequant.variant"]: run for run in runs if run.tags.get(tracking.PARENT_TAG) == parent.id
        }
        yield Finished(client, parent, children, folder, result)


def without_curves(metrics: dict[str, float]) -> dict[str, float]:
    """Without what only has a value at each step."""
    curves = ("train/learning_rate", "train/epochs", "watched/validation_loss", "watched/guard_loss")
    return {name: value for name, value in metrics.items() if name not in curves}


def artifact(finished: Finished, run: str, name: str) -> str:
    return Path(finished.client.download_artifacts(run, name)).read_text()


def test_every_variant_is_a_finished_nested_run_with_the_contracts_tags(finished):
    assert set(finished.variants) == set(VARIANTS)
    scheme = finished.parent.params["cfg.scheme"]
    trained = {"auto": "scales", "all": "all"}[TRAINABLE[scheme]]
    assert (
        finished.variants["qat"].params["trainable"] == trained and "trainable" not in finished.variants["ptq"].params
    )
    for variant, run in finished.variants.items():
        expected = "none" if variant in ("baseline", "control") else scheme
        tags = {key: run.tags[f"edgequant.{key}"] for key in ("model", "scheme", "phase")}
        assert tags == {"model": "tiny", "scheme": expected, "phase": "qat"}
        assert run.status == "FINISHED"


def test_metrics_carry_the_contracts_names(finished):
    for variant in ("baseline", "ptq", "control-ptq", "qat"):  # what may be delivered has all that was asked for
        names = set(finished.variants[variant].metrics)
        assert {
            *("domain/perplexity", "guard/perplexity", "guard/perplexity_ci_low", "guard/perplexity_ci_high"),
            *("latency/time_to_first_token_ms", "latency/prefill_ms_per_token"),
            *("latency/decode_ms_per_token", "latency/decode_ms_per_token_p90"),
            *("size/resident_gb", "size/bits_per_parameter", "size/reduction_vs_fp16", "size/reduction_vs_fp32"),
        } <= names
        assert "domain/perplexity_ci_low" not in names  # of one document
    trained = {"size/checkpoint_gb", "parity/max_logit_error", "parity/perplexity_delta", "train/tokens_per_second"}
    assert trained <= set(finished.variants["qat"].metrics)


def test_variants_of_one_layout_are_timed_once(finished):
    def speed(variant: str) -> dict[str, float]:
        metrics = finished.variants[variant].metrics
        return {
            name: value for name, value in metrics.items() if name.startswith(("latency/", "energy/", "size/resident"))
        }

    assert speed("ptq") == speed("control-ptq") == speed("qat") != speed("baseline")
    said = "speed, energy and memory are those of ptq, whose layout it has; measured once"
    assert said in artifact(finished, finished.variants["qat"].id, "notes.txt")
    assert said not in artifact(finished, finished.variants["ptq"].id, "notes.txt")


def test_the_parent_repeats_the_metrics_of_what_it_delivers(finished):
    delivered = without_curves(finished.delivered.metrics)
    assert {name: finished.parent.metrics[name] for name in delivered} == delivered


def test_integers_agree_with_what_was_trained(finished):
    assert finished.variants["qat"].metrics["parity/max_logit_error"] < 0.05
    assert abs(finished.variants["qat"].metrics["parity/perplexity_delta"]) < 0.5


def test_the_summary_file_is_the_summary_table_as_data(finished):
    rows = json.loads(artifact(finished, finished.parent.id, "summary.json"))
    assert [row["variant"] for row in rows] == list(VARIANTS)
    for row in rows:
        assert row["domain/perplexity"] == finished.variants[row["variant"]].metrics["domain/perplexity"]


def test_training_and_evaluation_text_are_inputs_with_digests(finished):
    inputs = finished.client.get_run(finished.parent.id).inputs.dataset_inputs
    contexts = {given.dataset.name: {tag.key: tag.value for tag in given.tags} for given in inputs}
    assert contexts["disaster"]["mlflow.data.context"] == "training"
    assert contexts["domain"]["mlflow.data.context"] == "evaluation"
    assert contexts["self-generated"]["mlflow.data.context"] == "training"
    assert all(len(given.dataset.digest) == 36 for given in inputs)


def test_training_curves_of_control_and_qat_are_logged_step_by_step(finished):
    for variant in ("control", "qat"):
        history = finished.client.get_metric_history(finished.variants[variant].id, "train/loss")
        assert {point.step for point in history} >= set(range(1, 7))


def test_the_reloaded_checkpoint_measures_what_was_logged(finished, quick):
    loaded = models.load(str(finished.folder / "delivered"), device="cpu")
    data = evaluation_data(("domain_perplexity",), None)
    metrics = evaluate_model(loaded.model, loaded.tokenizer, data, replace(quick, tasks=("domain_perplexity",))).metrics
    assert metrics["domain/perplexity"] == pytest.approx(finished.parent.metrics["domain/perplexity"], rel=1e-4)


def test_size_on_disk_is_what_was_logged(finished):
    weights = [*(finished.folder / "delivered").glob("*.safetensors")]
    size = sum(file.stat().st_size for file in weights)
    opened = checkpoint.open_checkpoint(finished.folder / "delivered")
    metrics = finished.parent.metrics
    assert metrics["size/checkpoint_gb"] == pytest.approx(size / 1e9)
    assert metrics["size/bits_per_parameter"] == pytest.approx(size * 8 / opened.parameters)
    assert metrics["size/reduction_vs_fp16"] == pytest.approx(100 * (1 - size / (2 * opened.parameters)))


def test_every_quantized_layer_is_integers_on_disk(finished):
    with safe_open(finished.folder / "delivered" / "model.safetensors", "pt") as stored:
        types = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 - no mapping
    codes = {name: kind for name, kind in types.items() if name.endswith(".codes")}
    embedding = 1 if "+emb" in finished.parent.params["cfg.scheme"] else 0
    assert len(codes) == 14 + embedding and set(codes.values()) <= {"I8", "U8"}
    assert not [name for name in types if name.endswith("proj.weight")]


def test_the_checkpoint_is_registered_with_metrics_tags_and_its_baseline(finished):
    version = finished.client.get_model_version("edgequant-tiny", "1")
    assert version.run_id == finished.parent.id
    assert version.tags["edgequant.scheme"] == finished.parent.params["cfg.scheme"]
    assert version.tags["edgequant.model"] == "tiny"
    baseline = json.loads(version.tags["edgequant.baseline"])
    expected = finished.variants["baseline"].metrics["domain/perplexity"]
    assert baseline["domain/perplexity"] == pytest.approx(expected, rel=1e-8)
    folder = tracking.download("models:/edgequant-tiny/1")
    filed = json.loads((folder / "evidence.json").read_text())["metrics"]["measured"]
    for name, value in without_curves(finished.delivered.metrics).items():
        assert filed[name] == pytest.approx(value, rel=1e-6)
    assert checkpoint.open_checkpoint(folder).scheme.name == finished.parent.params["cfg.scheme"]


def test_what_only_the_comparison_needed_is_gone(finished):
    left = {path.name for path in (finished.folder / "outputs" / "qat" / finished.parent.id).iterdir()}
    kept = {"control-result.json", "limits.json", "ptq-method.json"}  # for a run that is resumed after this
    assert left == {"checkpoint", *kept, *(f"{variant}.json" for variant in VARIANTS)}


def test_the_guard_text_is_measured_for_every_variant_without_a_data_folder(finished):
    for run in finished.variants.values():
        assert {"guard/perplexity", "guard/perplexity_ci_low", "held_out/guard_loss"} <= set(run.metrics)
        assert "held_out/validation_loss" in run.metrics


def test_held_out_curves_begin_before_the_first_step(finished):
    for variant in ("control", "qat"):
        for text in ("validation", "guard"):
            history = finished.client.get_metric_history(finished.variants[variant].id, f"watched/{text}_loss")
            assert {point.step for point in history} >= {0, 6}


def test_the_delivered_variant_predicts_no_held_out_text_worse_than_ptq(finished):
    ptq = finished.variants["ptq"].metrics
    for text, slack in (("validation", 0.0), ("guard", 0.01)):
        assert finished.delivered.metrics[f"held_out/{text}_loss"] <= ptq[f"held_out/{text}_loss"] + slack


def test_losses_against_the_baseline_are_in_the_run_with_their_intervals(finished):
    table = json.loads(artifact(finished, finished.parent.id, "against_baseline.json"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    by_variant = {(row["variant"], row["metric"]): row for row in rows}
    assert {variant for variant, _ in by_variant} == set(VARIANTS) - {"baseline"}
    before = finished.variants["baseline"].metrics["guard/perplexity"]
    for variant in ("ptq", "qat"):
        row = by_variant[variant, "guard/perplexity"]
        rise = 100 * (finished.variants[variant].metrics["guard/perplexity"] / before - 1)
        assert row["loss"] == pytest.approx(rise, abs=1e-6) and row["low"] <= row["loss"] <= row["high"]


def test_a_quantized_model_cannot_be_trained(store, tmp_path, quick, short):
    loaded = models.load("tiny", dtype="float32", device="cpu")
    api.quantize(loaded.model, "w8")
    made = api.save(loaded.model, loaded.tokenizer, tmp_path / "made", "w8")
    with pytest.raises(UserError, match=r"must be a floating-point model, got .* which is quantised already"):
        qat(model=str(made.folder), training=short, evaluation=quick, run=RunSettings(device="cpu"))
    assert tracking.find_runs(workflow="qat") == []
