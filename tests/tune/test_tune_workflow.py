import contextlib
import json
import math
from pathlib import Path

import pytest

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant_tune.workflow import tune

SHORT = TrainingSettings(steps=4, batch_size=2, sequence_length=64, learning_rate=1e-3)
QUICK = EvaluationSettings(tasks=("domain_perplexity",), limit=20)


@pytest.mark.long
def test_tune_trains_measures_and_registers_the_best_trial_of_tiny(tmp_path, store, ray_here, capsys):
    from edgequant import models

    tune(model="tiny", trials=2, training=SHORT, evaluation=QUICK, run=RunSettings(device="cpu"), scheduler="asha")
    (parent,) = [
        run
        for run in store.search_runs([store.get_experiment_by_name("edgequant").experiment_id])
        if "mlflow.parentRunId" not in run.data.tags
    ]
    assert parent.info.status == "FINISHED" and parent.data.tags["edgequant.workflow"] == "tune"
    artifacts = {file.path for file in store.list_artifacts(parent.info.run_id)}
    assert {"summary.json", "trials.json", "config.yaml", "checkpoint", "figures"} <= artifacts
    assert "best.learning_rate" in parent.data.params

    (version,) = store.search_model_versions("name = 'edgequant-tiny'")
    assert version.tags["edgequant.scheme"] == "w4a8-g32+emb4"
    filed, logged = float(version.tags["domain/perplexity"]), parent.data.metrics["domain/perplexity"]
    assert filed == pytest.approx(logged, rel=1e-6)
    assert math.isfinite(json.loads(version.tags["edgequant.baseline"])["domain/perplexity"])
    assert models.load("models:/edgequant-tiny/1", device="cpu").model.config.edgequant_model == "tiny"
    assert "edgequant promote --model edgequant-tiny --version 1" in capsys.readouterr().out
    judged_by_its_gates(store, version.tags)


def judged_by_its_gates(store, tags) -> None:
    """The winner goes through the default policy's gates, on its own metrics and its baseline's."""
    from edgequant_registry.workflow import promote

    with contextlib.suppress(SystemExit):  # refused or not: no random model has to pass
        promote(model="tiny", dry_run=True)
    (run,) = [run for run in tracking.find_runs(workflow="promote")]
    verdicts = json.loads(Path(store.download_artifacts(run.id, "gates.json")).read_text())
    rows = [dict(zip(verdicts["columns"], row, strict=True)) for row in verdicts["data"]]
    by_metric = {(row["metric"], row["gate"]): row for row in rows}
    size = by_metric["size/reduction_vs_fp16", "min 70"]
    loss = by_metric["domain/perplexity", "max_loss_percent 10 of baseline"]
    assert size["value"] == pytest.approx(float(tags["size/reduction_vs_fp16"]), rel=1e-3)
    allowed = 1.1 * json.loads(tags["edgequant.baseline"])["domain/perplexity"]
    assert loss["limit"] == pytest.approx(allowed, rel=1e-3)
    assert loss["verdict"] == ("passed" if loss["value"] <= allowed else "FAILED")


@pytest.mark.parametrize("option", ["space", "policy"])
def test_a_search_whose_space_or_policy_was_edited_meanwhile_does_not_go_on(tmp_path, store, monkeypatch, option):
    def interrupted(_):
        raise RuntimeError("stopped before its first trial")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgequant_tune.driver.ray_cluster", interrupted)
    Path("space").write_text("learning_rate: {choice: [1.0e-3, 1.0e-4]}")
    Path("policy").write_text("gates: [{metric: size/reduction_vs_fp16, min: 70}]")

    def search(resume):
        run = RunSettings(device="cpu", resume=resume)
        tune(model="tiny", trials=2, training=SHORT, evaluation=QUICK, run=run, space="space", policy="policy")

    for resume in (False, True):
        with pytest.raises(RuntimeError, match="stopped before its first trial"):
            search(resume)
    Path(option).write_text(Path(option).read_text().replace("0", "1"))
    with pytest.raises(UserError, match=rf"{option} '{option}'"):
        search(resume=True)
    assert len(tracking.find_runs(workflow="tune")) == 1


@pytest.mark.long
def test_finetuning_is_searched_too_and_its_best_model_goes_on_to_qat(tmp_path, store, ray_here, capsys):
    from edgequant import models

    space = {"rank": {"choice": [2, 4]}, "learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    tune(
        model="tiny",
        method="finetune",
        space=space,
        trials=2,
        training=SHORT,
        evaluation=QUICK,
        run=RunSettings(device="cpu"),
    )
    told = capsys.readouterr().out
    uri = told.rpartition("edgequant qat --model ")[2].split()[0]
    assert uri.startswith("runs:/") and models.load(uri, device="cpu").model.config.model_type == "qwen2"
    assert not store.search_model_versions()


def test_trials_are_scored_on_other_documents_than_the_winner():
    from edgequant.corpora.disaster.corpus import bundled_documents
    from edgequant_tune.scoring.selection import selection

    final = [(document.domain, document.text) for document in bundled_documents("test")]
    scored = selection({"domain": final, "boolq": None}, ("domain_perplexity", "boolq"), "disaster", None).select
    assert scored["domain"] and not {text for _, text in scored["domain"]} & {text for _, text in final}
    assert set(scored) == {"domain"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"space": {"learnin_rate": {"uniform": [0, 1]}}}, "did you mean learning_rate"),
        ({"space": {"learning_rate": {"uniform": [-1.0, 1.0]}}}, "learning_rate must be above 0, got -1.0"),
        ({"space": {"scheme": {"choice": ["w4-g32", "w4-g96"]}}}, "96"),
        ({"objectives": ("my/metric",)}, "my/metric"),
        ({"objectives": ("max:my/metric",)}, "must be a metric that some task measures, got 'my/metric'"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"time_budget_minutes": -1.0}, "time_budget_minutes must be above 0, or none, got -1.0"),
        ({"scheduler": "asha", "space": {"sequence_length": {"choice": [32, 64]}}}, "sequence_length"),
        ({"scheme": "w44"}, "w44"),
        ({"method": "finetune", "space": {"scheme": {"choice": ["w8"]}}}, "'scheme' is unknown"),
        ({"method": "finetune", "space": {"rank": {"choice": [0, 8]}}}, "lora.rank must be at least 1"),
        ({"dataset": "no-such-text"}, "no-such-text"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
def test_bad_configuration_is_refused_before_a_run_or_ray_exists(wrong, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        tune(**({"model": "tiny"} | wrong))
    assert said in str(refused.value)
    assert not list(Path(tmp_path).iterdir())
