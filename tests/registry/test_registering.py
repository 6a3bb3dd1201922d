"""Whatever makes a version, the gates can judge it: its metrics and its baseline's are filed with it."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import mlflow
import pytest

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import Scores
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.finetune import finetune
from edgequant.workflows.ptq import ptq
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps.register import BASELINE_TAG, default_model, promote_command, register_version
from edgequant_registry.versions import find_version, get_version
from edgequant_registry.workflow import PromotionRefusedError, promote

QUICK = EvaluationSettings(tasks=("domain_perplexity",), limit=20, window=256, bootstrap_resamples=20)
FEW_STEPS = TrainingSettings(steps=3, batch_size=2, sequence_length=64, learning_rate=5e-4, precision="float32")
NAME = "edgequant-tiny"
SIZE_ALONE = (
    "gates: [{metric: size/checkpoint_gb, max: 1}, {metric: domain/perplexity, against: baseline, max_loss: 50}]"
)


def verdicts(store) -> dict[str, dict]:
    """The newest promotion's verdicts by metric and reference."""
    run = tracking.find_runs(workflow="promote")[0]
    rows = json.loads(Path(store.download_artifacts(run.id, "summary.json")).read_text())
    return {f"{row['metric']} {row['gate']}": row for row in rows}


@pytest.mark.parametrize("scheme", ["w4a8-g32+emb4", "bnb-nf4"])
def test_a_version_that_ptq_registers_is_judged_by_every_gate_of_the_default_policy(store, scheme):
    ptq(model="tiny", scheme=scheme, evaluation=QUICK, register=True, run=RunSettings(device="cpu", dtype="float32"))
    version = store.get_model_version(NAME, "1")
    baseline = get_version(NAME, "1").evidence.baseline.metrics
    (floating,) = [run for run in tracking.find_runs() if run.tags.get("edgequant.variant") == "baseline"]
    assert baseline == pytest.approx(tracking.all_metrics(floating.id))
    with contextlib.suppress(PromotionRefusedError):  # bnb-nf4 is not 70 % smaller; either way the gates have spoken
        promote(model="tiny", dry_run=True)
    told = verdicts(store)
    size, perplexity = told["size/reduction_vs_fp16 min 70"], told["domain/perplexity max_loss_percent 10 of baseline"]
    assert size["value"] == pytest.approx(float(version.tags["size/reduction_vs_fp16"]), rel=1e-3)
    assert perplexity["value"] == pytest.approx(float(version.tags["domain/perplexity"]), rel=1e-3)
    assert size["verdict"] == ("passed" if scheme == "w4a8-g32+emb4" else "FAILED")
    assert perplexity["limit"] == pytest.approx(1.1 * baseline["domain/perplexity"], rel=1e-3)


@pytest.mark.long
def test_a_fine_tuned_model_that_was_merged_is_promoted_where_the_policy_allows_it(store, tmp_path):
    finetune(
        model="tiny",
        training=FEW_STEPS,
        evaluation=QUICK,
        register=True,
        run=RunSettings(device="cpu", dtype="float32"),
    )
    version = store.get_model_version(NAME, "1")
    assert version.tags["edgequant.variant"] == "finetuned" and version.tags["edgequant.scheme"] == "none"
    policy = tmp_path / "policy.yaml"
    policy.write_text(SIZE_ALONE)
    promote(model="tiny", policy=str(policy))
    assert str(store.get_registered_model(NAME).aliases["champion"]) == "1"
    with pytest.raises(PromotionRefusedError):  # float32 weights on disk are twice the size of fp16
        promote(model="tiny", dry_run=True)
    assert verdicts(store)["size/reduction_vs_fp16 min 70"]["value"] == pytest.approx(-100, abs=5)


def test_adapters_over_quantized_weights_cannot_be_registered(store):
    with pytest.raises(UserError, match="register true needs base auto, got base bnb-nf4"):
        finetune(model="tiny", base="bnb-nf4", register=True)
    assert tracking.find_runs() == []


@pytest.mark.parametrize(("measured", "reference"), [({}, {"size/checkpoint_gb": 1}), ({"size/checkpoint_gb": 1}, {})])
def test_a_checkpoint_without_its_metrics_or_its_baselines_is_not_registered(store, checkpoint, measured, reference):
    names = {"model": "tiny", "scheme": "w8", "variant": "ptq"}
    with tracking.workflow_run("ptq", {"of": "a test"}), pytest.raises(UserError, match="measure it first"):
        register_version(checkpoint, **names, measured=Scores(measured), baseline=Scores(reference))
    assert store.search_registered_models() == []


def test_two_versions_of_one_run_have_files_of_their_own(store, checkpoint):
    with tracking.workflow_run("ptq", {"of": "a test"}) as run:
        for variant, perplexity in (("ptq", 25.0), ("qat", 24.0)):
            row = Scores({"domain/perplexity": perplexity})
            register_version(checkpoint, model="tiny", scheme="w8", variant=variant, measured=row, baseline=row)
    assert [store.get_model_version(NAME, number).source.partition(run.id)[2] for number in ("1", "2")] == [
        "/checkpoint",
        "/checkpoint-2",
    ]
    for number, perplexity in (("1", 25.0), ("2", 24.0)):
        assert get_version(NAME, number).evidence.measured.metrics == {"domain/perplexity": perplexity}


def test_the_same_files_of_a_run_that_was_killed_behind_their_registration_are_one_version(
    store, checkpoint, monkeypatch
):
    names = {"model": "tiny", "scheme": "w8", "variant": "ptq"}
    row = Scores({"domain/perplexity": 25.0})
    with tracking.workflow_run("ptq", {"of": "a test"}) as run:
        monkeypatch.setattr(mlflow.MlflowClient, "log_text", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            register_version(checkpoint, **names, measured=row, baseline=row)
        monkeypatch.undo()
        assert len(store.search_model_versions(f"name = '{NAME}'")) == 1  # without its run's copy of the evidence
        later = Scores({"domain/perplexity": 25.0, "latency/decode_ms_per_token": 3.0})  # as of a second timing
        store.create_registered_model("somebodys")
        for _ in range(2):  # "Register model" in the UI, of the same files
            store.create_model_version("somebodys", store.get_model_version(NAME, "1").source, run.id)
        uris = [register_version(checkpoint, **names, measured=later, baseline=row) for _ in range(2)]
        assert uris == [f"models:/{NAME}/1"] * 2 and len(store.search_model_versions(f"name = '{NAME}'")) == 1
        assert get_version(NAME, "1").evidence.measured.metrics == {"domain/perplexity": 25.0}
        place = Path(store.get_run(run.id).info.artifact_uri.removeprefix("file://"))
        (place / "checkpoint" / "model.safetensors").unlink()  # somebody tidied up
        assert register_version(checkpoint, **names, measured=later, baseline=row) == f"models:/{NAME}/2"


def test_names_and_remarks_of_a_row_are_not_filed_as_metrics(store, checkpoint):
    row = {"model": "tiny", "scheme": "w8", "domain/perplexity": 25.0, "note": 3}
    with tracking.workflow_run("ptq", {"of": "a test"}):
        names = {"model": "tiny", "scheme": "w8", "variant": "ptq"}
        uri = register_version(checkpoint, **names, measured=Scores(row), baseline=Scores(row))
    assert uri == f"models:/{NAME}/1" and promote_command(uri) == f"edgequant promote --model {NAME} --version 1"
    tags = store.get_model_version(NAME, "1").tags
    assert json.loads(tags[BASELINE_TAG]) == {"domain/perplexity": 25.0}
    assert [key for key in tags if "/" in key] == ["domain/perplexity"]


def test_a_registered_model_and_its_version_say_base_model_licence_and_results(store, checkpoint):
    row = {"domain/perplexity": 25.0, "size/checkpoint_gb": 0.1}
    names = {"model": "smollm2-135m", "scheme": "w8", "variant": "ptq"}
    with (
        tracking.workflow_run("ptq", {"model": "qwen2.5-0.5b"}),
        tracking.variant_run("ptq", model="q", scheme="w8", phase="ptq"),
    ):
        tracking.log_revision("Qwen/Qwen2.5-0.5B", "0a1b2c")
        register_version(checkpoint, **names, measured=Scores(row), baseline=Scores(row))
    model = store.get_registered_model("edgequant-smollm2-135m")
    assert model.tags == {"base_model": "Qwen/Qwen2.5-0.5B", "license": "apache-2.0"}  # of the model that was asked for
    assert "Qwen/Qwen2.5-0.5B" in model.description and "apache-2.0" in model.description
    assert get_version("edgequant-smollm2-135m", "1").evidence.settings["edgequant.base_commit"] == "0a1b2c"
    card = tracking.download("models:/edgequant-smollm2-135m/1/README.md").read_text()
    assert "`Qwen/Qwen2.5-0.5B` at commit `0a1b2c` with scheme `w8`" in card
    told = store.get_model_version("edgequant-smollm2-135m", "1").description
    assert "ptq" in told and "| perplexity (domain) | 25.00" in told and "apache-2.0" in told


def test_what_a_person_has_written_about_a_registered_model_stays(store, checkpoint):
    store.create_registered_model(NAME, tags={"license": "mine"}, description="by hand")
    with tracking.workflow_run("ptq", {"model": "tiny"}):
        row, names = Scores({"domain/perplexity": 25.0}), {"model": "tiny", "scheme": "w8", "variant": "ptq"}
        register_version(checkpoint, **names, measured=row, baseline=row)
    model = store.get_registered_model(NAME)
    assert (model.description, model.tags["license"]) == ("by hand", "mine")
    assert model.tags["base_model"] == "tiny (random weights)"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_not_registered(register, store, value):
    broken = {"domain/perplexity": value}
    for filed in ({"metrics": broken}, {"baseline": broken}):
        with pytest.raises(UserError, match=r"cannot be registered: .* domain/perplexity is (nan|inf)"):
            register(**filed)
    assert not store.search_registered_models()


@pytest.mark.parametrize("others", ["a-model-of-others-{}", "edgequant-0-{}"])
def test_a_version_is_found_among_more_registered_models_than_a_page_of_the_stores_answer_holds(store, others):
    for number in range(101):
        store.create_registered_model(others.format(number))
    store.create_registered_model(NAME)
    made = store.create_model_version(NAME, "nowhere")
    assert find_version("tiny", None).label == find_version(None, None).label == find_version(NAME, made.version).label
    assert default_model() == f"models:/{NAME}/1"
