"""A version of `finetune` within integers is judged against the floating-point model: rounding is in the verdict."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import FILE, read
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.finetune import finetune
from edgequant.workflows.ptq import ptq
from edgequant.workflows.settings import RunSettings
from edgequant_registry.versions import get_version
from edgequant_registry.workflow import PromotionRefusedError, promote

NAME = "edgequant-floating"
QUICK = EvaluationSettings(tasks=("domain_perplexity",), limit=40, window=256, bootstrap_resamples=20)
TRAINING = TrainingSettings(steps=1, batch_size=2, sequence_length=64, learning_rate=1e-5, precision="float32")
RUN = RunSettings(device="cpu", dtype="float32")
GOOD, BAD = "w4-g32+emb4", "w2+emb2"


def tuned(checkpoint, **settings):
    """One step within a checkpoint's integers, registered."""
    given = {"register": True, "evaluation": QUICK, "training": TRAINING, "run": RUN} | settings
    return finetune(model=str(checkpoint), **given)


@pytest.fixture(scope="module")
def made(open_store, tmp_path_factory):
    """A model that has learnt with far outliers in its embedding, `floating`, and what two schemes make of it."""
    folder = tmp_path_factory.mktemp("made")
    tiny = models.load("tiny", dtype="float32", device="cpu")
    with torch.no_grad():
        tiny.model.get_input_embeddings().weight[:, ::16] += 0.5
    tiny.model.save_pretrained(folder / "floating")
    tiny.tokenizer.save_pretrained(folder / "floating")
    with open_store(folder):
        training = replace(TRAINING, steps=60, learning_rate=1e-2)
        learnt = finetune(
            model="floating", lora=LoraSettings(rank=0), training=training, evaluation=QUICK, output="learnt", run=RUN
        )
        shown = replace(QUICK, limit=20)  # less than `finetune` then looks at
        calibration = CalibrationSettings(num_calibration_samples=2)
        ptq(
            model=str(learnt.checkpoint), scheme=f"{GOOD},{BAD}", method="rtn", calibration=calibration,
            evaluation=shown, output="rounded", run=RUN,
        )  # fmt: skip
    return folder


@pytest.fixture
def checkpoints(made, store, tmp_path):
    """By scheme, and `floating`, in a store of their own, where a test may change them."""
    shutil.copytree(made / "rounded", tmp_path / "rounded")
    shutil.copytree(made / "learnt" / "merged", tmp_path / "learnt")
    found = {scheme: tmp_path / "rounded" / scheme for scheme in (GOOD, BAD)} | {"floating": tmp_path / "learnt"}
    for scheme in (GOOD, BAD):
        state(found[scheme], model=str(tmp_path / "learnt"))
    return found


def state(checkpoint: Path, **changes: str) -> None:
    """What a checkpoint's manifest says of its baseline."""
    manifest = json.loads((checkpoint / "edgequant.json").read_text())
    manifest["baseline"] |= changes
    (checkpoint / "edgequant.json").write_text(json.dumps(manifest))


def forget(checkpoint: Path) -> None:
    """As checkpoints were before they said what they were made from."""
    manifest = json.loads((checkpoint / "edgequant.json").read_text())
    del manifest["baseline"]
    (checkpoint / "edgequant.json").write_text(json.dumps(manifest))


def refused(version: int = 1) -> dict[str, str]:
    """By metric, why a version's gates failed."""
    with pytest.raises(PromotionRefusedError):
        promote(model=NAME, version=version)
    from edgequant import tracking

    gates = json.loads(tracking.client().get_model_version(NAME, str(version)).tags["edgequant.gates"])
    described = tracking.client().get_model_version(NAME, str(version)).description
    failed = [gate["metric"] for gate in gates if gate["verdict"] == "FAILED"]
    return dict.fromkeys(failed, described)


def test_a_badly_rounded_checkpoint_tuned_for_one_step_is_harmed_and_refused(checkpoints, store, capsys):
    result = tuned(checkpoints[BAD])
    said = capsys.readouterr().out
    failed = refused()
    assert {"domain/perplexity", "against_baseline/harmed"} <= {*failed}
    assert "worse than the baseline" in failed["domain/perplexity"]
    baseline, before, after = result.rows
    assert [(row["variant"], row["scheme"]) for row in result.rows] == [
        ("baseline", "none"), ("quantized", BAD), ("finetuned", BAD),
    ]  # fmt: skip
    assert after["domain/perplexity"] < 1.1 * before["domain/perplexity"]  # of that alone nothing would be seen
    assert after["domain/perplexity"] > 1.5 * baseline["domain/perplexity"]
    assert (before["verdict"], after["verdict"]) == ("harmed", "harmed")
    assert result.metrics["against_baseline/harmed"] == 1 and result.metrics["against_baseline/domain_perplexity_loss"]
    assert "harmed: domain/perplexity rose by" in said and "not offered for promotion" in said
    assert "next  edgequant report" in said
    assert store.get_model_version(NAME, "1").tags["edgequant.verdict"] == "harmed"


def test_a_well_rounded_one_is_promoted_by_the_default_policy_on_items_of_one_evaluation(checkpoints, store):
    tuned(checkpoints[GOOD])
    evidence = get_version(NAME, "1").evidence
    items = [[row["id"] for row in scores.items["domain"]] for scores in (evidence.baseline, evidence.measured)]
    assert items[0] == items[1] and len(items[0]) == 2  # as many as a limit of 40 makes: PTQ was measured on one
    promote(model=NAME, version=1)
    assert store.get_registered_model(NAME).aliases == {"champion": 1}


def test_what_was_tuned_twice_is_judged_against_the_same_floating_point_model(checkpoints, store):
    first = tuned(checkpoints[BAD])
    tuned(first.checkpoint)
    tuned("models:/edgequant-floating/2")
    assert [model.name for model in store.search_registered_models()] == [NAME]
    versions = (NAME, "1"), (NAME, "2"), (NAME, "3")
    once, *again = [get_version(*version).evidence.baseline for version in versions]
    assert once.metrics["domain/perplexity"] == pytest.approx(first.rows[0]["domain/perplexity"])
    for found in again:
        assert found.metrics["domain/perplexity"] == once.metrics["domain/perplexity"]
        assert found.items["domain"] == once.items["domain"]
    assert models.folder_config(tracking.download(f"models:/{NAME}/3"))["edgequant_model"] == "floating"
    assert {"domain/perplexity", "against_baseline/harmed"} <= {*refused(2)}


def test_an_old_checkpoint_was_never_compared_and_is_refused_until_its_model_is_named(checkpoints, store, capsys):
    forget(checkpoints[GOOD])
    result = tuned(checkpoints[GOOD])
    said = (
        f"never compared with the floating-point model: {checkpoints[GOOD]} does not say which model it was made from"
    )
    command = f"edgequant finetune --model {checkpoints[GOOD]} --baseline MODEL"
    assert said in capsys.readouterr().out and "against_baseline/harmed" not in result.metrics
    assert [row["variant"] for row in result.rows] == ["quantized", "finetuned"]
    version = store.get_model_version(NAME, "1")
    assert version.tags["edgequant.verdict"] == "never compared with the floating-point model"
    assert f"N{said[1:]}" in version.description and get_version(NAME, "1").evidence.baseline.metrics == {}
    failed = refused()
    assert {*failed} == {"domain/perplexity", "against_baseline/harmed"}
    assert said in failed["domain/perplexity"] and command in failed["domain/perplexity"]

    tuned(checkpoints[GOOD], baseline=str(checkpoints["floating"]))
    promote(model=NAME, version=2)


@pytest.mark.parametrize("fault", ["gone", "another"])
def test_a_model_that_is_gone_or_another_one_by_now_is_not_compared_with(checkpoints, store, fault):
    if fault == "gone":
        shutil.rmtree(checkpoints["floating"])
    else:
        state(checkpoints[GOOD], model="tiny")
    tuned(checkpoints[GOOD])
    said = get_version(NAME, "1").evidence.uncompared
    assert {"gone": "which cannot be had (model ", "another": "has other weights by now"}[fault] in said
    assert {*refused()} == {"domain/perplexity", "against_baseline/harmed"}


def test_a_model_that_is_named_and_is_not_the_checkpoints_own_is_refused(checkpoints, store):
    with pytest.raises(
        UserError, match=r"baseline must be the floating-point model of .*, got tiny: has other weights"
    ):
        tuned(checkpoints[GOOD], baseline="tiny")
    with pytest.raises(UserError, match=r"baseline: model './nowhere' not found"):
        tuned(checkpoints[GOOD], baseline="./nowhere")
    with pytest.raises(UserError, match=r"baseline: model must be a floating-point model"):
        tuned(checkpoints[GOOD], baseline=str(checkpoints[BAD]))


def test_evidence_from_before_does_not_take_the_quantised_checkpoint_for_the_baseline(checkpoints, store):
    tuned(checkpoints[BAD])
    run = store.get_model_version(NAME, "1").run_id
    told = json.loads(Path(store.download_artifacts(run, f"checkpoint/{FILE}")).read_text())
    assert read(json.dumps(told), FILE).uncompared == ""
    del told["uncompared"]
    old = read(json.dumps(told), FILE)
    assert "an earlier edgequant compared it with the w2+emb2 checkpoint" in old.uncompared
    assert old.baseline.metrics == {} and not old.baseline.items
    told["variant"] = "qat"
    assert read(json.dumps(told), FILE).baseline.metrics
