"""`finetune` on `tiny`: LoRA and QLoRA, the adapter and the merged model, before and after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.training.settings import LoraSettings
from edgequant.workflows.finetune import finetune
from edgequant.workflows.settings import RunSettings

TOKENS = torch.arange(40)[None]


def logits(source: Path) -> torch.Tensor:
    with torch.no_grad():
        return models.load(str(source), dtype="float32", device="cpu").model(input_ids=TOKENS).logits


@pytest.fixture(scope="module")
def finished(open_store, tmp_path_factory, quick, short):
    """(client, parent run, a run per variant, folder)"""
    folder = tmp_path_factory.mktemp("finetune")
    with open_store(folder) as client:
        finetune(
            model="tiny", training=replace(short, steps=12, learning_rate=1e-2), lora=LoraSettings(rank=4, alpha=8),
            evaluation=quick, run=RunSettings(device="cpu", dtype="float32"), output=str(folder / "made"),
        )  # fmt: skip
        runs = tracking.find_runs(experiment="edgequant")
        (parent,) = [run for run in runs if run.workflow == "finetune"]
        children = {
            run.tags["edgequant.variant"]: run for run in runs if run.tags.get(tracking.PARENT_TAG) == parent.id
        }
        yield client, parent, children, folder / "made"


def test_before_and_after_are_nested_runs_with_the_contracts_tags(finished):
    _, parent, children, _ = finished
    assert set(children) == {"baseline", "finetuned"}
    for run in children.values():
        assert {run.tags[f"edgequant.{key}"] for key in ("model", "scheme", "phase")} == {"tiny", "none", "finetune"}
    after = children["finetuned"].metrics
    assert parent.metrics["domain/perplexity"] == after["domain/perplexity"]
    assert after["train/tokens_per_second"] > 0


def test_the_domains_perplexity_falls(finished):
    _, _, children, _ = finished
    assert children["finetuned"].metrics["domain/perplexity"] < 0.9 * children["baseline"].metrics["domain/perplexity"]


def test_adapter_and_merged_model_compute_the_same_and_not_what_the_base_does(finished):
    *_, folder = finished
    torch.testing.assert_close(logits(folder / "adapter"), logits(folder / "merged"), rtol=1e-4, atol=1e-4)
    assert (logits(folder / "merged") - logits("tiny")).abs().max() > 0.1
    assert not (folder / "training").exists()


def test_the_adapter_is_small_and_an_artifact_of_the_run(finished):
    client, parent, _, folder = finished
    weights = folder / "adapter" / "adapter_model.safetensors"
    assert weights.stat().st_size < 0.2 * (folder / "merged" / "model.safetensors").stat().st_size
    assert "adapter/adapter_model.safetensors" in {file.path for file in client.list_artifacts(parent.id, "adapter")}
    assert not [*folder.rglob("*.bin"), *folder.rglob("*.pt"), *folder.rglob("*.pkl")]


def test_the_summary_is_data(finished):
    client, parent, _, _ = finished
    rows = json.loads(Path(client.download_artifacts(parent.id, "summary.json")).read_text())
    assert [row["variant"] for row in rows] == ["baseline", "finetuned"]


@pytest.mark.parametrize("base", ["bnb-nf4", "bnb-int8"])
def test_qlora_trains_adapters_over_bitsandbytes_integers(store, tmp_path, quick, short, base):
    settings = replace(quick, tasks=("domain_perplexity",))
    finetune(
        model="tiny", base=base, training=replace(short, steps=3), lora=LoraSettings(rank=2), evaluation=settings,
        run=RunSettings(device="cpu", dtype="float32"), output=str(tmp_path / "made"),
    )  # fmt: skip
    runs = {run.tags.get("edgequant.variant"): run for run in tracking.find_runs()}
    assert runs["finetuned"].tags["edgequant.scheme"] == base
    assert runs["finetuned"].metrics["domain/perplexity"] != runs["baseline"].metrics["domain/perplexity"]
    assert (tmp_path / "made" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "made" / "merged").exists()


def test_targets_that_do_not_exist_end_the_run_as_failed_with_the_layers_there_are(store, quick, short):
    with pytest.raises(UserError, match=r"lora\.targets 'wq' does not fit.*q_proj"):
        finetune(
            model="tiny",
            training=short,
            lora=LoraSettings(targets="wq"),
            evaluation=quick,
            run=RunSettings(device="cpu"),
        )
    assert {run.status for run in tracking.find_runs()} <= {"FAILED", "FINISHED"}
    assert tracking.find_runs(workflow="finetune")[0].status == "FAILED"
