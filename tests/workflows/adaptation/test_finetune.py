"""`finetune` on `tiny`: LoRA and QLoRA, the adapter and the merged model, before and after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.models.adapters.quantized_base import bitsandbytes_config
from edgequant.training import loop
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
    names = json.loads((folder / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert len(names) > 2 and names == sorted(names)  # peft's set has another order in each process


def test_the_summary_is_data(finished):
    client, parent, _, _ = finished
    rows = json.loads(Path(client.download_artifacts(parent.id, "summary.json")).read_text())
    assert [row["variant"] for row in rows] == ["baseline", "finetuned"]


@pytest.mark.parametrize(("text", "harmed"), [("disaster", False), ("zyx ", True)])
def test_a_model_that_lost_what_it_could_is_called_harmed(store, tmp_path, quick, short, capsys, text, harmed):
    (tmp_path / "text.txt").write_text("zyx " * 2000)
    dataset = text if text == "disaster" else str(tmp_path / "text.txt")
    settings = replace(quick, tasks=("domain_perplexity",), limit=100)
    made = finetune(
        model="tiny", dataset=dataset, replay=None, evaluation=settings,
        training=replace(short, steps=20, learning_rate=2e-2), lora=LoraSettings(rank=0 if harmed else 4),
        run=RunSettings(device="cpu", dtype="float32"), output=str(tmp_path / "made"),
    )  # fmt: skip
    assert made.metrics["against_baseline/harmed"] == harmed
    assert ("harmed: domain/perplexity rose" in capsys.readouterr().out) == harmed
    assert [row.get("verdict") for row in made.rows] == [None, "harmed" if harmed else "not harmed"]


@pytest.mark.parametrize("base", ["bnb-nf4", "bnb-int8"])
def test_qlora_trains_adapters_over_bitsandbytes_integers(store, tmp_path, quick, short, base):
    settings = replace(quick, tasks=("domain_perplexity",))
    finetune(
        model="tiny", base=base, training=replace(short, steps=3), lora=LoraSettings(rank=2), evaluation=settings,
        run=RunSettings(device="cpu", dtype="float32"), output=str(tmp_path / "made"),
    )  # fmt: skip
    runs = {run.tags.get("edgequant.variant"): run for run in tracking.find_runs()}
    assert runs["finetuned"].tags["edgequant.scheme"] == base
    assert json.loads((tmp_path / "made" / "adapter" / "quantized_base.json").read_text())["scheme"] == base
    loaded = models.load(str(tmp_path / "made" / "adapter"), dtype="float32", device="cpu").model
    assert "bnb" in type(loaded.get_submodule("base_model.model.model.layers.0.mlp.down_proj")).__module__
    assert runs["finetuned"].metrics["domain/perplexity"] != runs["baseline"].metrics["domain/perplexity"]
    assert (tmp_path / "made" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "made" / "merged").exists()


@pytest.mark.parametrize("base", ["float", "bnb-nf4"])
def test_on_text_of_its_own_a_model_follows_itself_as_it_came(store, tmp_path, quick, short, base, monkeypatch):
    seen, train = [], loop.train

    def watched(model, tokens, *given, anchor, **how):
        before = anchor.model(input_ids=TOKENS).logits
        result = train(model, tokens, *given, anchor=anchor, **how)
        seen.append((tokens[anchor.rows], before, anchor.model(input_ids=TOKENS).logits))
        return result

    monkeypatch.setattr(loop, "train", watched)
    as_it_came = {"quantization_config": bitsandbytes_config(base, "float32")} if base != "float" else {}
    given = models.load("tiny", dtype="float32", device="cpu", load_options=as_it_came)
    finetune(
        model="tiny", base=base, dataset="disaster:0.5,self-generated:0.5", lora=LoraSettings(rank=2),
        training=replace(short, steps=3, learning_rate=1e-2), evaluation=replace(quick, tasks=("domain_perplexity",)),
        run=RunSettings(device="cpu", dtype="float32"), output=str(tmp_path / "made"),
    )  # fmt: skip
    ((written, before, after),) = seen
    assert len(written) and torch.equal(before, after)
    with torch.no_grad():
        kernels = 0.02 if base != "float" else 1e-5  # bitsandbytes measures with another one than it trains with
        torch.testing.assert_close(before, given.model(input_ids=TOKENS).logits, rtol=0, atol=kernels)


def test_of_instructions_the_answers_are_learnt_and_the_questions_are_not(store, tmp_path, quick, short):
    rows = [{"instruction": f"Say xyzzy {n}", "answer": "A boat, and a boat again."} for n in range(60)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    finetune(
        model="tiny", dataset=str(file), lora=LoraSettings(rank=4),
        training=replace(short, steps=8, learning_rate=1e-2), evaluation=replace(quick, tasks=("domain_perplexity",)),
        run=RunSettings(device="cpu", dtype="float32"), output=str(tmp_path / "made"),
    )  # fmt: skip
    asked, answer = "Question: Say xyzzy 7\nAnswer:", " A boat, and a boat again."
    lost = []
    for source in ("tiny", str(tmp_path / "made" / "merged")):
        loaded = models.load(source, dtype="float32", device="cpu")
        ids = torch.tensor([loaded.tokenizer(asked + answer)["input_ids"]])  # a token is a byte
        with torch.no_grad():
            said = loaded.model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
        lost.append((-float(said[: len(asked) - 1].mean()), -float(said[len(asked) - 1 :].mean())))
    (question_before, answer_before), (question_after, answer_after) = lost
    assert answer_after < 0.8 * answer_before
    assert question_after > 0.95 * question_before


def test_bundled_instructions_are_the_training_data_that_the_run_states(store, tmp_path, quick, short):
    finetune(
        model="tiny", dataset="disaster-instructions", lora=LoraSettings(rank=2),
        training=replace(short, steps=2, sequence_length=384), evaluation=replace(quick, tasks=("domain_perplexity",)),
        run=RunSettings(device="cpu", dtype="float32"), output=str(tmp_path / "made"),
    )  # fmt: skip
    (parent,) = [run for run in tracking.find_runs(experiment="edgequant") if run.workflow == "finetune"]
    given = {each.dataset.name for each in store.get_run(parent.id).inputs.dataset_inputs}
    assert given == {"disaster-instructions", "domain", "self-generated"}


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
