"""What one trial trains, as `qat` or `finetune` do it to the bit, but scored on data that are not reported.

`scoring/selection.py` says which these are; only the front is measured on what `qat` reports.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.evaluation.tasks.latency import LATENCY
from edgequant_tune.cluster.quiet_node import quiet_node
from edgequant_tune.objectives import HELD_OUT

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgequant.evaluation.tasks.task import EvaluationData
    from edgequant_tune.trial_spec import OnReport, TrialSpec

LEAST_ROWS = 16  # sequences behind `validation/loss`


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
    from edgequant.models.manifest import Baseline, record_baseline
    from edgequant.training.shared_parts import shared_digest
    from edgequant.workflows.adaptation.bases import lasting_name
    from edgequant.workflows.shipping import deploy_folder
    from edgequant.workflows.steps import qat_experiment, qat_variants
    from edgequant.workflows.steps.data import evaluation_data
    from edgequant.workflows.validate import validate

    settings: dict[str, Any] = {"training": trial.training, "qat": trial.qat, "calibration": trial.calibration}
    source, (scheme,) = validate(trial.model, trial.dataset, schemes=trial.scheme, **settings)
    reported = evaluation_data(_all_tasks(trial), trial.run.data_dir)
    experiment = qat_experiment.load(
        source, scheme, trial.dataset, **settings, evaluation=trial.evaluation, run=trial.run, folder=work_dir,
        data=selection_data(trial, reported), guarded=reported, shared=trial.shared,
    )  # fmt: skip
    reporter = TrialReporter(trial, experiment.tokenizer, experiment.data, on_report)
    experiment = replace(experiment, on_step=reporter.on_step, on_look=lambda *_: None)
    qat_variants.rounded(experiment)  # as `qat` does: QAT starts from it, and its best state is no worse than it
    made = qat_variants.quantized(experiment)
    metrics = measured_metrics(trial, made.model, made.tokenizer, experiment.data, made.checkpoint)
    checkpoint = qat_variants.save_result(experiment, "qat", None)
    asked: dict[str, Any] = {"seed": trial.run.seed, "device": trial.run.device}
    sha256 = shared_digest(trial.shared, source, experiment.floating, **asked)
    record_baseline(checkpoint, Baseline(lasting_name(source, trial.model), sha256))
    with nullcontext() if trial.timing.left_out else quiet_node(trial.timing.threads_used):
        ships = deploy_folder(checkpoint, None, trial.timing)
    return Candidate(metrics | dict(made.metrics) | ships.metrics, checkpoint)


def finetune_candidate(trial: TrialSpec, work_dir: Path, on_report: OnReport) -> Candidate:
    """LoRA on the text: train, merge, save, reload, measure; over a quantised base (QLoRA) the adapter stays one.

    Arguments as `qat_candidate`.
    """
    from edgequant import models
    from edgequant.training.loop import train
    from edgequant.training.shared_parts import shared_model
    from edgequant.workflows.adaptation.bases import FLOAT
    from edgequant.workflows.adaptation.ways import way_of
    from edgequant.workflows.steps.data import evaluation_data
    from edgequant.workflows.steps.sequences import training_sequences

    run, training = trial.run, trial.training
    source = replace(models.resolve(trial.model), version_of=trial.family)
    way = way_of(source, trial.model, trial.base, trial.lora, apart=False, dtype=run.dtype, device=run.device)
    is_float = trial.base == FLOAT
    loaded: Any = shared_model(trial.shared, trial.model, seed=run.seed, device=run.device) if is_float else way.load()
    reported = evaluation_data(_all_tasks(trial), run.data_dir)
    rows = training_sequences(
        trial.dataset, loaded.tokenizer, training.sequence_length, reported, run.data_dir, seed=run.seed
    )
    training = training.for_text(len(rows), str(loaded.model.device).partition(":")[0])
    adapted = way.prepare(loaded, run.seed)
    scored = selection_data(trial, reported)
    reporter = TrialReporter(trial, loaded.tokenizer, scored, on_report)
    result = train(
        adapted, rows, training, work_dir / "training", seed=run.seed, title=f"finetune {trial.model}",
        document_end=loaded.tokenizer.eos_token_id,
        on_log=lambda step, metrics: reporter.report(adapted, step, metrics),
    )  # fmt: skip
    written = way.write(adapted.eval(), loaded.tokenizer, work_dir)
    shutil.rmtree(work_dir / "training", ignore_errors=True)
    measured = written.delivered if written.whole else None  # an adapter's folder is not the model's size
    metrics = measured_metrics(trial, written.loaded, loaded.tokenizer, scored, measured)
    return Candidate(metrics | {"train/loss": result.loss}, written.delivered)


def _all_tasks(trial: TrialSpec) -> list[str]:
    return list(dict.fromkeys((*trial.evaluation.tasks, *trial.reported)))


def measured_metrics(
    trial: TrialSpec, model: Any, tokenizer: Any, data: EvaluationData, checkpoint: Path | None
) -> dict[str, float]:
    """A trial's metrics on its tasks; times are measured behind all others, alone on the node."""
    from edgequant.evaluation.suite import evaluate_model

    tasks = trial.evaluation.tasks
    quality = replace(trial.evaluation, tasks=tuple(name for name in tasks if name != LATENCY.name))
    metrics = dict(evaluate_model(model, tokenizer, data, quality, checkpoint=checkpoint).metrics)
    if LATENCY.name in tasks:
        with quiet_node(trial.threads):
            timed = evaluate_model(model, tokenizer, data, replace(trial.evaluation, tasks=(LATENCY.name,)))
        metrics |= {name: value for name, value in timed.metrics.items() if name.startswith("latency/")}
    return metrics


def selection_data(trial: TrialSpec, reported: EvaluationData) -> EvaluationData:
    """What a trial is scored on."""
    from edgequant_tune.scoring.selection import selection

    return selection(reported, trial.evaluation.tasks, trial.dataset, trial.run.data_dir).select


class TrialReporter:
    """Reports a trial's training, with the held-out loss added on rungs, of the model as it is simulated then."""

    def __init__(self, trial: TrialSpec, tokenizer: Any, data: EvaluationData, on_report: OnReport) -> None:
        self.trial, self.tokenizer, self.data, self.on_report = trial, tokenizer, data, on_report

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
        """Of the text that trials are scored on, spread evenly over it: what they cost is a twentieth of a training."""
        import torch

        from edgequant.corpora.packing import pack
        from edgequant.evaluation.tasks.registry import find_data_set

        name, training = self.trial.rung_text or "domain", self.trial.training
        texts, scored = find_data_set(name).texts, self.data.get(name)
        assert texts is not None and scored is not None
        rows = pack(texts(scored), self.tokenizer, training.sequence_length)
        count = min(len(rows), max(LEAST_ROWS, training.sequences // (20 * len(self.trial.rungs))))
        return rows[torch.linspace(0, len(rows) - 1, count).round().long()].to(self.trial.run.device)


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
