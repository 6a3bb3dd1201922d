"""Whether a version may be registered is asked before a run exists, of the model that it is going to be one of."""

from __future__ import annotations

import shutil

import pytest

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.quantization.checkpoint import ensure_manifest
from edgequant.workflows.finetune import finetune
from edgequant.workflows.pipeline import pipeline
from edgequant.workflows.ptq import ptq
from edgequant.workflows.qat import qat
from edgequant_tune.workflow import tune


@pytest.mark.parametrize("workflow", [ptq, qat, finetune, tune])
def test_the_permission_that_is_asked_for_is_of_the_model_that_a_runs_checkpoint_is_of(
    store, tmp_path, monkeypatch, workflow
):
    def refused(model):
        raise UserError(f"may not register {model}")

    monkeypatch.chdir(tmp_path)
    with tracking.workflow_run("finetune", {}) as run:
        tracking.log_folder(merged(tmp_path / "merged"), "merged")
    monkeypatch.setattr("edgequant.tracking.runs.check_may_register", refused)
    with pytest.raises(UserError, match=r"^may not register tiny$"):
        workflow(model=f"runs:/{run.id}/merged", register=True)


def test_a_pipeline_of_several_models_asks_for_each(store, tmp_path, monkeypatch, tiny_folder):
    asked = []

    def refused(model):
        asked.append(model)
        if len(asked) == 2:
            raise UserError("may not register the second")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgequant.tracking.runs.check_may_register", refused)
    with pytest.raises(UserError, match=r"^may not register the second$"):
        pipeline(models=f"tiny,{shutil.copytree(tiny_folder, tmp_path / 'other')}", register=True)
    assert asked == ["tiny", "other"]


def merged(folder):
    """As finetune writes its model."""
    loaded = models.load("tiny", device="cpu")
    loaded.model.config.update({"edgequant_base": "tiny"})
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    ensure_manifest(folder)
    return folder
