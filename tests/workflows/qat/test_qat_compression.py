"""The main job with adapters, pruning and what else makes training or its result smaller, on `tiny`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps import qat_experiment


def variants_of(experiment: str = "edgequant") -> dict[str, tracking.FinishedRun]:
    runs = tracking.find_runs(experiment=experiment)
    return {run.tags["edgequant.variant"]: run for run in runs if "edgequant.variant" in run.tags}


@pytest.mark.long
def test_pruning_is_part_of_the_compressed_variants_and_adapters_of_qat(store, quick, short):
    settings = QatSettings(lora_rank=4, sparsity=0.5, sparsity_pattern="2:4")
    quality = replace(quick, tasks=("domain_perplexity",))
    qat(
        model="tiny",
        adapt=True,
        training=short,
        qat=settings,
        evaluation=quality,
        run=RunSettings(device="cpu"),
        register=False,
    )
    runs = variants_of()
    sparsity = {name: run.metrics.get("size/sparsity") for name, run in runs.items()}
    assert sparsity["baseline"] is None and sparsity["control"] is None
    assert all(0.5 <= sparsity[name] < 1 for name in ("ptq", "control-ptq", "qat"))
    assert runs["qat"].metrics["parity/max_logit_error"] < 0.05
    assert runs["qat"].metrics["domain/perplexity"] != runs["ptq"].metrics["domain/perplexity"]
    for name in ("ptq", "control-ptq", "qat"):
        assert "layer_errors.html" in {item.path for item in store.list_artifacts(runs[name].id)}
        table = json.loads(Path(store.download_artifacts(runs[name].id, "layer_errors.json")).read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        layers = [row for row in rows if row["kind"] != "block"]
        assert len(layers) == 15 and all(0 < row["weight_error"] < 0.05 and row["bits"] == 4 for row in layers)


def test_what_does_not_fit_the_model_is_refused_before_anything_is_measured(store, quick, short):
    with pytest.raises(UserError, match=r"qat.lora_rank must be at most 64 for layer \S+k_proj .* got 65"):
        qat(model="tiny", training=short, qat=QatSettings(lora_rank=65), evaluation=quick)
    assert not variants_of()


def test_what_does_not_fit_the_scheme_is_refused_before_a_run_starts(store, quick, short):
    with pytest.raises(UserError, match=r"does not fit scheme q4_1"):
        qat(model="tiny", scheme="q4_1", training=short, qat=QatSettings(sparsity=0.5))
    assert not tracking.find_runs(workflow="qat")


@pytest.mark.long
def test_training_starts_from_a_ptq_methods_result_with_adapters_on_top(store, quick, short):
    settings = QatSettings(init_from="gptq", lora_rank=4)
    quality = replace(quick, tasks=("domain_perplexity",))
    qat(model="tiny", training=short, qat=settings, evaluation=quality, register=False)
    runs = variants_of()
    assert runs["qat"].metrics["parity/max_logit_error"] < 0.05
    assert runs["qat"].metrics["domain/perplexity"] < runs["baseline"].metrics["domain/perplexity"] * 1.02
    assert not list(Path("outputs").glob("qat/*/start-blocks"))  # gone once the checkpoint is delivered


@pytest.mark.long
def test_the_control_teaches_qat_at_a_rate_of_its_own(store, quick, short, monkeypatch):
    seen: dict[str, tuple[TrainingSettings, torch.nn.Module | None, torch.Tensor]] = {}

    def recorded(model, tokens, settings, folder, *, teacher=None, title="", **more):
        result = train(model, tokens, settings, folder, teacher=teacher, title=title, **more)
        seen[title.split()[0]] = settings, teacher, model.model.layers[0].mlp.up_proj.weight.detach().clone()
        return result

    monkeypatch.setattr(qat_experiment, "train", recorded)
    settings = QatSettings(distill_from="control", student_learning_rate=5e-3, max_forgetting=None)
    quality = replace(quick, tasks=("domain_perplexity",))
    training = replace(short, distillation_weight=1.0)
    qat(
        model="tiny", training=training, qat=settings, evaluation=quality, run=RunSettings(device="cpu"), register=False
    )
    (control, untaught, weight), (taught, teacher, _) = seen["control"], seen["qat"]
    assert untaught is None and control == replace(training, distillation_weight=0.0)
    assert taught == replace(training, learning_rate=5e-3)
    assert teacher is not None and torch.equal(teacher.model.layers[0].mlp.up_proj.weight, weight)


def test_a_teacher_that_nothing_is_learned_from_is_refused(store, short):
    with pytest.raises(
        UserError, match=r"qat.distill_from control has no effect with training.distillation_weight 0.0"
    ):
        qat(model="tiny", training=short, qat=QatSettings(distill_from="control"))
    with pytest.raises(UserError, match=r"qat.student_learning_rate must be above 0, .* got -1.0"):
        QatSettings(student_learning_rate=-1.0)
    assert not tracking.find_runs(workflow="qat")
