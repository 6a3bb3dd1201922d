"""Gates believe a version's evidence alone, and that only where it is what was filed with the version."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import pytest

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.files import sha256_of
from edgequant_registry.versions import get_version
from edgequant_registry.workflow import PromotionRefusedError, promote

NAME = "edgequant-tiny"
TOO_BIG = {"size/reduction_vs_fp16": 50.0, "domain/perplexity": 25.0}


def aliases(store) -> dict[str, str]:
    return {alias: str(version) for alias, version in store.get_registered_model(NAME).aliases.items()}


def files_of(store, version="1") -> Path:
    """Where the files of a version lie in the store."""
    run = store.get_run(store.get_model_version(NAME, version).run_id)
    return Path(run.info.artifact_uri) / "checkpoint"


def rewrite_manifest(folder: Path) -> None:
    """As somebody would who knows how the manifest is made."""
    manifest = json.loads((folder / "edgequant.json").read_text())
    manifest["sha256"] = {name: sha256_of(folder / name) for name in manifest["sha256"] if (folder / name).is_file()}
    (folder / "edgequant.json").write_text(json.dumps(manifest))


def test_a_version_carries_one_file_with_figures_items_data_protocol_and_files(store, register, measured, checkpoint):
    register(**measured, tags={"edgequant.deploy_format": "q4_1"})
    told = json.loads((files_of(store) / "evidence.json").read_text())
    assert told["metrics"]["measured"] == pytest.approx(dict(measured["measured"].metrics))
    assert told["metrics"]["baseline"]["guard/perplexity_ci_low"] < told["metrics"]["baseline"]["guard/perplexity"]
    assert told["items"]["measured"]["domain"]["digest"] == told["items"]["baseline"]["domain"]["digest"]
    assert set(told["items"]["measured"]) == {"domain", "domain_boolean", "domain_span", "guard"}
    assert told["conditions"]["protocol"]["limit"] == 20 and len(told["conditions"]["data"]["domain"]) == 64
    assert len(told["conditions"]["kept"]["guard"]) == 4 and "domain" not in told["conditions"]["kept"]
    assert told["files"]["model.safetensors"] == sha256_of(checkpoint / "model.safetensors")
    assert told["settings"] == {"edgequant.deploy_format": "q4_1"}
    assert not (checkpoint / "evidence.json").exists()  # it is the version's, and the folder stays as it was
    version = store.get_model_version(NAME, "1")
    assert version.tags["edgequant.evidence"] == sha256_of(files_of(store) / "evidence.json")
    assert len([name for name in version.tags if "/" in name]) <= 12
    read = get_version(NAME, "1").evidence
    assert read.measured.items["domain"][0]["nats"] == measured["measured"].items["domain"][0]["nats"]


def test_forged_tags_of_the_version_convince_no_gate(store, register):
    register(TOO_BIG)
    store.set_model_version_tag(NAME, "1", "size/reduction_vs_fp16", "90")
    store.set_model_version_tag(NAME, "1", "edgequant.baseline", json.dumps({"domain/perplexity": 1000.0}))
    with pytest.raises(PromotionRefusedError):
        promote()
    assert aliases(store) == {}


def test_a_forged_metric_of_its_run_convinces_no_gate(store, register):
    register(TOO_BIG)
    store.log_metric(store.get_model_version(NAME, "1").run_id, "size/reduction_vs_fp16", 90.0)
    with pytest.raises(PromotionRefusedError):
        promote()
    assert aliases(store) == {}


def test_what_the_run_wrote_down_about_the_evidence_cannot_be_changed(store, register):
    register()
    run = store.get_run(store.get_model_version(NAME, "1").run_id)
    (key,) = [name for name in run.data.params if name.startswith("evidence.")]
    with pytest.raises(mlflow.exceptions.MlflowException, match="not allowed"):
        store.log_param(run.info.run_id, key, "0" * 64)


FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def test_every_kind_of_tampering_with_the_files_is_seen_whoever_mends_the_manifest(store, register):
    register()
    folder = files_of(store)
    card = {"README.md"}  # which people edit
    assert {*FILES, "edgequant.json", "evidence.json"} == {file.name for file in folder.iterdir()} - card
    for name in (*FILES, "evidence.json"):
        named = rf"^{NAME} version 1: .*{re.escape(name)}"  # and not by the folder that it was fetched to
        before, manifest = (folder / name).read_bytes(), (folder / "edgequant.json").read_bytes()
        (folder / name).write_bytes(before.replace(b"1", b"2") + b" ")
        for mended in (False, True):
            if mended:
                rewrite_manifest(folder)
            with pytest.raises(UserError, match=named):
                promote()
        (folder / name).unlink()
        with pytest.raises(UserError, match=named):
            promote()
        (folder / name).write_bytes(before)
        (folder / "edgequant.json").write_bytes(manifest)
    (folder / "edgequant.json").unlink()
    with pytest.raises(UserError, match=r"edgequant\.json not found"):
        promote()
    assert aliases(store) == {}


def test_better_figures_in_the_evidence_and_in_its_runs_copy_are_seen(store, register):
    register(TOO_BIG)
    folder = files_of(store)
    copy = folder.parent / "evidence" / f"{NAME}-v1.json"
    forged = copy.read_text().replace('"size/reduction_vs_fp16": 50.0', '"size/reduction_vs_fp16": 90.0')
    assert forged != copy.read_text()
    genuine = copy.read_text()
    copy.write_text(forged)
    with pytest.raises(UserError, match=r"copy of its evidence\.json is not what was filed"):
        promote()
    (folder / "evidence.json").write_text(forged)
    rewrite_manifest(folder)
    with pytest.raises(UserError, match=r"version 1: its evidence\.json is not what was filed"):
        promote()
    copy.write_text(genuine)
    with pytest.raises(UserError, match=r"version 1: its evidence\.json is not what was filed"):
        promote(dry_run=True)
    assert aliases(store) == {}


def test_an_exported_file_that_was_filed_must_be_there(store, register, checkpoint, tmp_path):
    import shutil

    from edgequant.models.manifest import list_file

    folder = shutil.copytree(checkpoint, tmp_path / "with-gguf")
    (folder / "model-q4_1.gguf").write_bytes(b"GGUF")
    list_file(folder, "model-q4_1.gguf", sha256_of(folder / "model-q4_1.gguf"))
    register(folder=folder)
    promote(dry_run=True)
    (files_of(store) / "model-q4_1.gguf").unlink()
    with pytest.raises(UserError, match=r"model-q4_1\.gguf not found"):
        promote()


@pytest.mark.long
def test_a_version_whose_run_was_deleted_is_not_promoted_until_the_run_is_restored(store, register):
    register()
    run_id = store.get_model_version(NAME, "1").run_id
    store.delete_run(run_id)
    with pytest.raises(UserError, match=f"was deleted, .* `mlflow runs restore --run-id {run_id}`"):
        promote()
    assert aliases(store) == {}
    store.restore_run(run_id)
    store.delete_experiment("1")  # and all runs in it
    with pytest.raises(UserError, match="'edgequant' with `mlflow experiments restore --experiment-id 1`"):
        promote(experiment="another")
    store.restore_experiment("1")
    promote()
    assert aliases(store) == {"champion": "1"}
    store.delete_run(run_id)
    assert promote(history=True).rows[0]["version"] == "1"  # who was champion is told whatever became of the files
    store.restore_run(run_id)
    promote()
    assert aliases(store) == {"champion": "1"}


def test_a_version_made_by_hand_of_somebody_elses_files_is_refused(store, register):
    register()
    filed = store.get_model_version(NAME, "1")
    store.create_model_version(NAME, filed.source, filed.run_id)
    with pytest.raises(UserError, match="was not registered by edgequant"):
        promote(version=2)
    assert aliases(store) == {}


def without_evidence(checkpoint) -> None:
    """A version as edgequant registered them before."""
    with tracking.workflow_run("qat", {"of": "a test"}):
        tracking.log_metrics({"size/reduction_vs_fp16": 71.5, "domain/perplexity": 25.0})
        tracking.register_checkpoint(checkpoint, NAME, tags={"size/reduction_vs_fp16": "71.5"})


@pytest.mark.long
@pytest.mark.parametrize("damage", ["run deleted", "evidence changed"])
def test_a_champion_that_is_damaged_can_be_rolled_back(store, register, damage):
    for _ in range(2):
        register()
        promote()
    if damage == "run deleted":
        store.delete_run(store.get_model_version(NAME, "2").run_id)
    else:
        (files_of(store, "2") / "evidence.json").write_text("{}")
    promote(rollback=True)
    assert aliases(store) == {"champion": "1"}
    assert [run.status for run in tracking.find_runs(workflow="promote")] == ["FINISHED"] * 3


def test_a_version_without_evidence_is_looked_at_but_not_promoted(store, checkpoint, capsys):
    without_evidence(checkpoint)
    with pytest.raises(UserError, match=r"version 1 was registered without evidence .* --dry_run true"):
        promote()
    with pytest.raises(PromotionRefusedError):
        promote(dry_run=True)
    told = " ".join(capsys.readouterr().out.split())
    assert "71.5 % is at least 70 %" in told and "a version without evidence has no baseline" in told
    assert aliases(store) == {}


def test_a_champion_without_evidence_is_compared_by_its_runs_metrics_and_that_is_said(store, checkpoint, register):
    without_evidence(checkpoint)
    store.set_registered_model_alias(NAME, "champion", "1")
    register()
    promote()
    assert aliases(store)["champion"] == "2"
    assert (
        "version 1 (without evidence, by its run's metrics)"
        in json.dumps(tracking.find_runs(workflow="promote")[0].tags) + store.get_model_version(NAME, "2").description
    )
