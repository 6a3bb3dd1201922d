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
from edgequant.workflows.qat import compare, qat
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps.data import evaluation_data

VARIANTS = ("baseline", "ptq", "control", "control-ptq", "qat")


class Finished(NamedTuple):
    """A finished qat: the store's client, the parent run, a run per variant, where it ran, what it printed."""

    client: Any
    parent: Any
    variants: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module", params=["w4a8-g32+emb4", "w8a8-static"])
def finished(request, open_store, tmp_path_factory, quick, short):
    folder = tmp_path_factory.mktemp("qat")
    with open_store(folder) as client:
        qat(
            model="tiny", scheme=request.param, training=short, evaluation=quick, run=RunSettings(device="cpu",
            dtype="float32", seed=3),
            output=str(folder / "delivered"),
        )  # fmt: skip
        runs = tracking.find_runs(experiment="edgequant")
        (parent,) = [run for run in runs if run.workflow == "qat"]
        children = {
            run.tags["edgequant.variant"]: run for run in runs if run.tags.get(tracking.PARENT_TAG) == parent.id
        }
        yield Finished(client, parent, children, folder)


def without_curves(metrics: dict[str, float]) -> dict[str, float]:
    """Without what only has a value at each step."""
    return {name: value for name, value in metrics.items() if name != "train/learning_rate"}


def artifact(finished: Finished, run: str, name: str) -> str:
    return Path(finished.client.download_artifacts(run, name)).read_text()


def test_every_variant_is_a_finished_nested_run_with_the_contracts_tags(finished):
    assert set(finished.variants) == set(VARIANTS)
    scheme = finished.parent.params["cfg.scheme"]
    for variant, run in finished.variants.items():
        expected = "none" if variant in ("baseline", "control") else scheme
        tags = {key: run.tags[f"edgequant.{key}"] for key in ("model", "scheme", "phase")}
        assert tags == {"model": "tiny", "scheme": expected, "phase": "qat"}
        assert run.status == "FINISHED"


def test_metrics_carry_the_contracts_names(finished):
    for variant in ("baseline", "ptq", "qat"):
        names = set(finished.variants[variant].metrics)
        assert {
            *("domain/perplexity", "domain/perplexity_ci_low", "domain/perplexity_ci_high"),
            *("latency/time_to_first_token_ms", "latency/prefill_ms_per_token"),
            *("latency/decode_ms_per_token", "latency/decode_ms_per_token_p90"),
            *("size/resident_gb", "size/bits_per_parameter", "size/reduction_vs_fp16", "size/reduction_vs_fp32"),
        } <= names
    trained = {"size/checkpoint_gb", "parity/max_logit_error", "parity/perplexity_delta", "train/tokens_per_second"}
    assert trained <= set(finished.variants["qat"].metrics)


def test_the_parent_repeats_the_metrics_of_what_it_delivers(finished):
    delivered = without_curves(finished.variants["qat"].metrics)
    assert {name: finished.parent.metrics[name] for name in delivered} == delivered


def test_recovered_fraction_is_the_share_of_the_controls_ptq_loss(finished):
    perplexity = {variant: run.metrics["domain/perplexity"] for variant, run in finished.variants.items()}
    lost = perplexity["control-ptq"] - perplexity["control"]
    if lost <= 1e-3 * perplexity["control"]:
        assert "qat/recovered_fraction" not in finished.parent.metrics
    else:
        expected = (perplexity["control-ptq"] - perplexity["qat"]) / lost
        assert finished.parent.metrics["qat/recovered_fraction"] == pytest.approx(expected)


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
    assert baseline["domain/perplexity"] == finished.variants["baseline"].metrics["domain/perplexity"]
    for name, value in without_curves(finished.variants["qat"].metrics).items():
        assert float(version.tags[name]) == pytest.approx(value, rel=1e-6)
    folder = tracking.download("models:/edgequant-tiny/1")
    assert checkpoint.open_checkpoint(folder).scheme.name == finished.parent.params["cfg.scheme"]


def test_what_only_the_comparison_needed_is_gone(finished):
    left = {path.name for path in (finished.folder / "outputs" / "qat" / finished.parent.id).iterdir()}
    assert left == {"checkpoint", *(f"{variant}.json" for variant in VARIANTS)}


def test_a_quantized_model_cannot_be_trained(store, tmp_path, quick, short):
    loaded = models.load("tiny", dtype="float32", device="cpu")
    api.quantize(loaded.model, "w8")
    made = api.save(loaded.model, loaded.tokenizer, tmp_path / "made", "w8")
    with pytest.raises(UserError, match=r"must be a floating-point model, got .* which is quantised already"):
        qat(model=str(made.folder), training=short, evaluation=quick, run=RunSettings(device="cpu"))
    (run,) = tracking.find_runs(workflow="qat")
    assert run.status == "FAILED"


# ------------------------------------------------------------------------------------------- what the table warns of


@pytest.fixture
def tagged(monkeypatch) -> dict[str, str]:
    tags: dict[str, str] = {}
    monkeypatch.setattr(tracking, "set_tags", tags.update)
    return tags


def test_a_task_lost_beyond_its_interval_is_a_warning_and_a_tag(tagged):
    control = {"domain/perplexity": 10.0, "boolq/accuracy": 0.6, "boolq/accuracy_ci_low": 0.55, "squad/f1": 0.3}
    rows = {
        "baseline": control,
        "control": control | {"squad/f1_ci_low": 0.25},
        "control-ptq": {"domain/perplexity": 14.0},
        "qat": {"domain/perplexity": 11.0, "boolq/accuracy": 0.5, "squad/f1": 0.26},
    }
    warnings = compare(rows, "disaster")
    assert warnings == ["boolq/accuracy fell from 0.600 to 0.500, beyond the reference's interval"]
    assert tagged == {"edgequant.warnings": warnings[0]}
    assert rows["qat"]["qat/recovered_fraction"] == pytest.approx((14 - 11) / (14 - 10))


def test_nothing_is_recovered_where_ptq_lost_nothing(tagged):
    rows = {
        "baseline": {"domain/perplexity": 10.0},
        "control": {"domain/perplexity": 10.0},
        "control-ptq": {"domain/perplexity": 9.9},
        "qat": {"domain/perplexity": 9.8},
    }
    assert compare(rows, "disaster") == [] and tagged == {}
    assert "qat/recovered_fraction" not in rows["qat"]


def test_after_training_on_wikitext_its_perplexity_counts(tagged):
    rows = {
        variant: {"wikitext2/perplexity": value, "domain/perplexity": 1.0}
        for variant, value in (("baseline", 9.0), ("control", 10.0), ("control-ptq", 20.0), ("qat", 15.0))
    }
    compare(rows, "wikitext-2")
    assert rows["qat"]["qat/recovered_fraction"] == pytest.approx(0.5)


def test_a_fraction_of_next_to_nothing_is_not_told(tagged):
    perplexities = {"baseline": 12.0, "control": 10.0, "control-ptq": 10.009, "qat": 9.5}
    rows = {variant: {"domain/perplexity": value} for variant, value in perplexities.items()}
    compare(rows, "disaster")
    assert "qat/recovered_fraction" not in rows["qat"]
    rows["control-ptq"]["domain/perplexity"] = 10.02
    compare(rows, "disaster")
    assert rows["qat"]["qat/recovered_fraction"] == pytest.approx(26.0)
