"""`pipeline` on `tiny`: all phases in order under one parent, each reading what the one before wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.quantization import checkpoint
from edgequant.workflows.pipeline import PHASES, pipeline
from edgequant.workflows.settings import RunSettings


@pytest.fixture(scope="module")
def finished(open_store, tmp_path_factory, quick, short):
    """(client, parent run, a run per phase, folder)"""
    folder = tmp_path_factory.mktemp("pipeline")
    with open_store(folder) as client:
        pipeline(
            model="tiny", training=replace(short, steps=3), evaluation=quick, run=RunSettings(device="cpu"),
            output=str(folder / "made"),
        )  # fmt: skip
        (parent,) = tracking.find_runs(workflow="pipeline")
        phases = {run.workflow: run for run in tracking.find_runs(parent=parent.id) if run.workflow}
        yield client, parent, phases, folder / "made"


def test_every_phase_is_a_finished_run_under_the_parent_in_this_order(finished):
    _, parent, phases, _ = finished
    assert parent.status == "FINISHED"
    assert [run.workflow for run in sorted(phases.values(), key=lambda run: run.start_time)] == list(PHASES)
    assert {run.status for run in phases.values()} == {"FINISHED"}


def test_the_parent_repeats_the_metrics_of_the_model_it_delivers(finished):
    _, parent, phases, _ = finished
    assert parent.metrics["domain/perplexity"] == phases["qat"].metrics["domain/perplexity"]
    assert parent.metrics["size/checkpoint_gb"] == phases["qat"].metrics["size/checkpoint_gb"]


def test_the_summary_names_the_run_of_each_phase(finished):
    client, parent, phases, _ = finished
    rows = json.loads(Path(client.download_artifacts(parent.id, "summary.json")).read_text())
    assert [(row["phase"], row["run"]) for row in rows] == [(phase, phases[phase].id) for phase in PHASES]


def test_each_phase_leaves_its_folder(finished):
    *_, folder = finished
    assert (folder / "corpus" / "dataset_dict.json").is_file()
    assert checkpoint.open_checkpoint(folder / "qat").scheme.name == "w4a8-g32+emb4"
    assert checkpoint.open_checkpoint(folder / "ptq" / "w4a8-g32+emb4")
    assert (folder / "finetune" / "merged" / "model.safetensors").is_file()
    assert (folder / "report" / "report.html").is_file()


def test_training_reads_the_corpus_that_was_just_made(finished):
    _, _, phases, folder = finished
    for phase in ("ptq", "qat", "finetune"):
        written_too = ",self-generated" if phase == "qat" else ""
        assert phases[phase].params["cfg.dataset"] == f"{folder / 'corpus'}{written_too}"


def test_evaluation_measures_the_checkpoint_of_qat(finished):
    _, _, phases, folder = finished
    assert phases["evaluate"].params["cfg.model"] == str(folder / "qat")
    evaluated, trained = phases["evaluate"].metrics, phases["qat"].metrics
    assert evaluated["size/checkpoint_gb"] == trained["size/checkpoint_gb"]
    assert evaluated["domain/perplexity"] == pytest.approx(trained["domain/perplexity"], rel=1e-4)


def test_the_checkpoint_is_registered(finished):
    client, _, phases, _ = finished
    assert client.get_model_version("edgequant-tiny", "1").run_id == phases["qat"].id


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


def test_an_unknown_phase_is_refused_with_the_known_ones(store):
    with pytest.raises(UserError, match=r"phases must be some of corpus, baseline, ptq, .* got 'bake'"):
        pipeline(model="tiny", phases=("qat", "bake"))
    assert tracking.find_runs() == []
