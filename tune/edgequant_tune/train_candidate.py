"""What one trial trains, as `qat` or `finetune` do it, but scored on validation data.

A search that looked at the test sets would choose what fits them by chance. So trials are scored on the
validation split of the domain text and of WikiText-2, and on BoolQ's and SQuAD's training questions where their files
are (their public evaluation set otherwise); only the winner is measured on what `qat` reports.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant_tune.objectives import HELD_OUT

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgequant.evaluation.tasks.task import EvaluationData
    from edgequant_tune.trial_spec import OnReport, TrialSpec

HELD_OUT_ROWS = 16  # sequences of held-out text behind `validation/loss`


class Candidate(NamedTuple):
    """Metrics of the checkpoint reloaded from disk, under the project's names, and the checkpoint's folder."""

    metrics: Mapping[str, float]
    checkpoint: Path


def qat_candidate(trial: TrialSpec, work_dir: Path, on_report: OnReport) -> Candidate:
    """Quantisation-aware training: train, convert, save, reload, measure, and measure what ships.

    Args:
        trial: with this trial's hyperparameters; after the steps in `rungs`, `validation/loss` is measured, so that a
            scheduler can compare trials.
        work_dir: the trial's folder.
        on_report: called with (step, metrics) after each step: the training loss, and on rungs the held-out loss.

    Raises:
        UserError: hyperparameters that do not go together.
    """
    from edgequant.evaluation.suite import evaluate_model
    from edgequant.workflows.shipping import deploy_folder
    from edgequant.workflows.steps import qat_experiment, qat_variants
    from edgequant.workflows.steps.data import evaluation_data
    from edgequant.workflows.validate import validate

    settings: dict[str, Any] = {"training": trial.training, "qat": trial.qat, "calibration": trial.calibration}
    source, (scheme,) = validate(trial.model, trial.dataset, schemes=trial.scheme, **settings)
    reported = evaluation_data(trial.evaluation.tasks, trial.run.data_dir)
    experiment = qat_experiment.load(
        source, scheme, trial.dataset, **settings, evaluation=trial.evaluation, run=trial.run, folder=work_dir,
        data=validation_data(reported, trial.dataset, trial.run.data_dir), guarded=reported,
    )  # fmt: skip
    reporter = TrialReporter(trial, experiment.tokenizer, on_report)
    experiment = replace(experiment, on_step=reporter.on_step, on_look=lambda *_: None)
    made = qat_variants.quantized(experiment)
    measured = evaluate_model(made.model, made.tokenizer, experiment.data, trial.evaluation, checkpoint=made.checkpoint)
    checkpoint = qat_variants.save_result(experiment, "qat", None)
    ships = deploy_folder(checkpoint, None, trial.timing)
    return Candidate(measured.metrics | dict(made.metrics) | ships.metrics, checkpoint)


def finetune_candidate(trial: TrialSpec, work_dir: Path, on_report: OnReport) -> Candidate:
    """LoRA on the text: train, merge, save, reload, measure. Arguments as `qat_candidate`."""
    from edgequant import models
    from edgequant.evaluation.suite import evaluate_model
    from edgequant.training.loop import train
    from edgequant.training.lora import attach
    from edgequant.workflows.finetune import save_result
    from edgequant.workflows.steps.data import evaluation_data
    from edgequant.workflows.steps.sequences import training_sequences

    run, training = trial.run, trial.training
    loaded = models.load(trial.model, dtype="float32", device=run.device)
    reported = evaluation_data(trial.evaluation.tasks, run.data_dir)
    rows = training_sequences(
        trial.dataset, loaded.tokenizer, training.sequence_length, reported, run.data_dir, seed=run.seed
    )
    adapted = attach(loaded.model, trial.lora, made_from=trial.model)
    reporter = TrialReporter(trial, loaded.tokenizer, on_report)
    result = train(
        adapted, rows, training, work_dir / "training", seed=run.seed, title=f"finetune {trial.model}",
        on_log=lambda step, metrics: reporter.report(adapted, step, metrics),
    )  # fmt: skip
    made = save_result(adapted.eval(), loaded.tokenizer, work_dir, "float", dtype=run.dtype, device=run.device)
    shutil.rmtree(work_dir / "training", ignore_errors=True)
    scored = validation_data(reported, trial.dataset, run.data_dir)
    merged = work_dir / "merged"
    metrics = evaluate_model(made, loaded.tokenizer, scored, trial.evaluation, checkpoint=merged).metrics
    return Candidate(metrics | {"train/loss": result.loss}, merged)


def validation_data(data: EvaluationData, dataset: str, data_dir: str | None) -> EvaluationData:
    """The same tasks on data that the final evaluation does not use, where their data sets have such splits."""
    from edgequant.workflows.steps.data import selection_rows

    given = {name: rows for name, rows in data.items() if rows is not None}
    return {name: selection_rows(name, rows, dataset, data_dir) for name, rows in given.items()}


class TrialReporter:
    """Reports a trial's training, with the held-out loss added on rungs, of the model as it is simulated then."""

    def __init__(self, trial: TrialSpec, tokenizer: Any, on_report: OnReport) -> None:
        self.trial, self.tokenizer, self.on_report = trial, tokenizer, on_report

    def on_step(self, variant: str, model: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
        """For `QatExperiment`: the control that teaches a trial is not part of its curves."""
        if variant == "qat":
            self.report(model, step, metrics)

    def report(self, model: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
        """Report a step's metrics."""
        held_out = {HELD_OUT: _loss(model, self._rows)} if step in self.trial.rungs else {}
        self.on_report(step, dict(metrics) | held_out)

    @cached_property
    def _rows(self) -> Tensor:
        from edgequant.corpora.disaster.corpus import bundled_documents
        from edgequant.corpora.packing import pack

        texts = [document.text for document in bundled_documents("validation") if document.language == "en"]
        rows = pack(texts, self.tokenizer, self.trial.training.sequence_length)
        return rows[:HELD_OUT_ROWS].to(self.trial.run.device)


def _loss(model: Any, rows: Any) -> float:
    """Mean next-token loss in nats; leaves the model, its observers included, as it was."""
    import torch

    from edgequant.quantization.layers.convert import set_phase
    from edgequant.training.distillation import next_token_loss

    was_training = model.training
    model.eval()
    # every step sets the phase anew before it begins
    set_phase(model, quantize_inputs=True, observe=False)
    with torch.no_grad():
        losses = [float(next_token_loss(model(input_ids=row, use_cache=False).logits, row)) for row in rows.split(4)]
    model.train(was_training)
    return sum(losses) / len(losses)
