"""`pipeline` on `tiny`: all phases in order under one parent, each reading what the one before wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.quantization import checkpoint
from edgequant.workflows.pipeline import pipeline
from edgequant.workflows.settings import RunSettings
from edgequant_registry.versions import get_version

DONE = ["corpus", "baseline", "ptq", "qat", "finetune", "adapt-after", "evaluate", "export", "report"]
WORKFLOWS = {"adapt-after": "finetune"}  # by phase, where the names differ


@pytest.fixture(scope="module")
def finished(open_store, tmp_path_factory, quick, short):
    """(client, parent run, a run per phase, folder)"""
    folder = tmp_path_factory.mktemp("pipeline")
    with open_store(folder) as client:
        pipeline(
            model="tiny", training=replace(short, steps=3), evaluation=quick, run=RunSettings(device="cpu"),
            adapt=("after",), output=str(folder / "made"),
        )  # fmt: skip
        (parent,) = tracking.find_runs(workflow="pipeline")
        rows = json.loads(Path(client.download_artifacts(parent.id, "summary.json")).read_text())
        runs = {run.id: run for run in tracking.find_runs(parent=parent.id)}
        yield client, parent, {row["phase"]: runs[row["run"]] for row in rows if row["run"]}, folder / "made"


@pytest.mark.long
def test_every_phase_is_a_finished_run_under_the_parent_in_this_order(finished):
    _, parent, phases, _ = finished
    assert parent.status == "FINISHED"
    assert [phase for phase, _ in sorted(phases.items(), key=lambda pair: pair[1].start_time)] == DONE
    assert {phase: run.workflow for phase, run in phases.items()} == {name: WORKFLOWS.get(name, name) for name in DONE}
    assert {run.status for run in phases.values()} == {"FINISHED"}


@pytest.mark.long
def test_the_parent_repeats_the_metrics_of_the_model_it_delivers(finished):
    _, parent, phases, _ = finished
    assert parent.metrics["domain/perplexity"] == phases["qat"].metrics["domain/perplexity"]
    assert parent.metrics["size/checkpoint_gb"] == phases["qat"].metrics["size/checkpoint_gb"]


@pytest.mark.long
def test_each_phase_leaves_its_folder(finished):
    *_, folder = finished
    assert (folder / "corpus" / "dataset_dict.json").is_file()
    made = {checkpoint.open_checkpoint(folder / name).weight_bytes for name in ("qat", "ptq/w4a8-g32+emb4")}
    assert {checkpoint.open_checkpoint(folder / "adapt-after" / "merged").weight_bytes} == made
    assert (folder / "finetune" / "merged" / "model.safetensors").is_file()
    assert (folder / "report" / "report.html").is_file() and list((folder / "export").glob("*.gguf"))


@pytest.mark.long
def test_training_reads_the_corpus_that_was_just_made(finished):
    _, _, phases, folder = finished
    text = str(folder / "corpus")
    read = {phase: phases[phase].params["cfg.dataset"] for phase in ("ptq", "qat", "finetune", "adapt-after")}
    assert read == {"ptq": text, "qat": f"{text},self-generated", "finetune": text, "adapt-after": text}
    assert {phases[phase].params["cfg.replay"] for phase in ("finetune", "adapt-after")} == {"self-generated:0.5"}


@pytest.mark.long
def test_evaluation_and_export_take_the_checkpoint_of_qat(finished):
    _, _, phases, folder = finished
    assert {phases[phase].params["cfg.model"] for phase in ("evaluate", "export")} == {str(folder / "qat")}
    evaluated, trained = phases["evaluate"].metrics, phases["qat"].metrics
    assert evaluated["size/checkpoint_gb"] == trained["size/checkpoint_gb"]
    assert evaluated["domain/perplexity"] == pytest.approx(trained["domain/perplexity"], rel=1e-4)


@pytest.mark.long
def test_what_qat_and_the_orders_make_is_registered_under_the_models_name(finished):
    client, _, phases, _ = finished
    versions = [client.get_model_version("edgequant-tiny", str(number)).run_id for number in (1, 2)]
    assert versions == [phases["qat"].id, phases["adapt-after"].id]
    assert phases["adapt-after"].params["cfg.baseline"] == "tiny"
    evidence = [get_version("edgequant-tiny", number).evidence for number in ("1", "2")]
    before = [each.baseline.metrics["domain/perplexity"] for each in evidence]  # both of the model as it came
    assert before[0] == pytest.approx(before[1], rel=1e-4)


@pytest.mark.long
def test_the_orders_stand_in_one_table_with_differences_from_base_and_adapted_model(finished):
    client, parent, phases, folder = finished
    lines = (folder / "orders.md").read_text().splitlines()
    named = [line.split("|")[1].strip() for line in lines if line.startswith("| ") and line.split("|")[1].strip()]
    compared = ["adapted", "quantised", "quantised->adapted"]
    assert named == ["base", *compared, *compared, *compared[1:]]
    rows = {row["row"]: row for row in json.loads((folder / "orders.json").read_text())}
    assert rows["quantised->adapted"]["domain/perplexity"] == pytest.approx(
        phases["adapt-after"].metrics["domain/perplexity"], rel=1e-4
    )
    assert rows["quantised"]["deploy/size_gb"] == rows["quantised->adapted"]["deploy/size_gb"]
    assert client.list_artifacts(parent.id, "orders/tiny")


@pytest.mark.long
def test_a_phase_whose_inputs_are_unchanged_is_not_done_again(finished, quick, short, monkeypatch):
    _, _, phases, folder = finished
    settings = {"model": "tiny", "evaluation": quick, "adapt": ("after",), "run": RunSettings(device="cpu")}
    settings |= {"output": str(folder), "training": replace(short, steps=3), "phases": ("corpus", "ptq", "finetune")}
    again = pipeline(**settings)
    assert [(row["phase"], row["run"], row["minutes"]) for row in again.rows] == [
        (phase, phases[phase].id, None) for phase in ("corpus", "ptq", "finetune")
    ]
    changed = pipeline(**settings | {"replay": None})  # which the corpus and PTQ do not depend on
    assert [row["minutes"] is None for row in changed.rows] == [True, True, False]


def test_only_the_phases_asked_for_run(store, tmp_path, quick, short):
    settings = {"training": replace(short, steps=1), "evaluation": replace(quick, tasks=("domain_perplexity",))}
    pipeline(
        model="tiny",
        phases=("evaluate", "corpus"),
        run=RunSettings(device="cpu"),
        output=str(tmp_path / "out"),
        **settings,
    )
    (parent,) = tracking.find_runs(workflow="pipeline")
    ran = [run.workflow for run in reversed(tracking.find_runs(parent=parent.id)) if run.workflow]
    assert ran == ["corpus", "evaluate"]


def test_a_failing_phase_fails_the_parent_too(store, tmp_path, quick, short, monkeypatch):
    from edgequant.workflows import finetune

    def broken(**_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(finetune, "finetune", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        pipeline(model="tiny", phases=("finetune",), training=short, evaluation=quick, output=str(tmp_path / "out"))
    assert tracking.find_runs(workflow="pipeline")[0].status == "FAILED"


def test_an_interrupted_pipeline_goes_on_with_the_phase_that_was_not_done(store, tmp_path, quick, short, monkeypatch):
    from edgequant.workflows import evaluate

    settings = {"model": "tiny", "phases": ("corpus", "evaluate"), "training": short, "output": str(tmp_path / "out")}
    settings["evaluation"] = replace(quick, tasks=("domain_perplexity",))
    whole, calls = evaluate.evaluate, []

    def interrupted(**given):
        calls.append(given)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return whole(**given)

    monkeypatch.setattr(evaluate, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline(**settings, run=RunSettings(device="cpu"))
    result = pipeline(**settings, run=RunSettings(device="cpu", resume=True))
    (parent,) = tracking.find_runs(workflow="pipeline")
    assert (parent.id, parent.status) == (result.run_id, "FINISHED")
    done = [run.workflow for run in tracking.find_runs(parent=parent.id) if run.workflow]
    assert sorted(done) == ["corpus", "evaluate"] and len(calls) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phases": ("qat", "bake")}, r"phases must be some of corpus, baseline, ptq, .* got 'bake'"),
        ({"adapt": ("between",)}, "adapt must be some of before, after, joint, got 'between'"),
        ({"phases": ("qat", "adapt")}, "adapt before needs phase finetune, got phases qat, adapt"),
        ({"replay": "wikitext-2"}, "replay must be one text and its share, such as self-generated:0.5"),
        ({"replay": "nowhere:0.1"}, "replay must be one of .* got 'nowhere'"),
        ({"models": "tiny,tiny"}, "models must differ in name, got 'tiny' and 'tiny'"),
        ({"method": "gptp"}, "^PTQ method 'gptp' is unknown"),
        ({"models": " ,"}, "models must name one or more"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run_exists(store, settings, message):
    with pytest.raises(UserError, match=message):
        pipeline(model="tiny", **settings)
    assert tracking.find_runs() == []
