"""What one trial trains, as `qat` or `finetune` do it, but scored on validation data.

A search that looked at the test sets would choose what fits them by chance. So trials are scored on the
validation split of the domain text and of WikiText-2, and on BoolQ's and SQuAD's training questions where their files
are (their public evaluation set otherwise); only the winner is measured on what `qat` reports.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.workflows.quantized_training import QuantizedTraining
from edgequant_tune.trial import HELD_OUT

if TYPE_CHECKING:
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.tasks.task import EvaluationData
    from edgequant.quantization.settings import QuantizationSettings
    from edgequant.training.settings import LoraSettings, TrainingSettings

HELD_OUT_ROWS = 16  # sequences of held-out text behind `validation/loss`
OnReport = Callable[[int, dict[str, float]], None]


class Candidate(NamedTuple):
    """Metrics of the checkpoint reloaded from disk, under the contract's names, and the checkpoint's folder."""

    metrics: Mapping[str, float]
    checkpoint: Path


def qat_candidate(
    model: str,
    scheme: str,
    *,
    training: TrainingSettings,
    quantization: QuantizationSettings,
    evaluation: EvaluationSettings,
    text: str,
    data_dir: str | None,
    device: str,
    seed: int,
    work_dir: Path,
    rungs: Sequence[int],
    on_evaluate: OnReport,
    **_: Any,
) -> Candidate:
    """Quantisation-aware training: train, convert, save, reload, measure.

    Args:
        rungs: steps after which `validation/loss` is measured, so that a scheduler can compare trials.
        on_evaluate: called with (step, metrics) after each step: the training loss, and on rungs the held-out loss.
    """
    from edgequant.evaluation.suite import evaluate_model
    from edgequant.workflows.qat import check_configuration

    parsed = check_configuration(model, scheme, text)
    quantization.check_scheme(parsed)
    quantization.check_distillation(training.distillation)
    job = _ObservedTraining(parsed, training, quantization, evaluation, work_dir, seed=seed)
    job.rungs = frozenset(rungs)
    job.load(model, text, data_dir, device=device)
    job.data = validation_data(job.data, text, data_dir)
    made = job.quantized(on_log=on_evaluate)
    measured = evaluate_model(made.model, made.tokenizer, job.data, evaluation, checkpoint=made.checkpoint)
    return Candidate(measured.metrics | dict(made.metrics), job.deliver(None))


def finetune_candidate(
    model: str,
    scheme: str,
    *,
    training: TrainingSettings,
    lora: LoraSettings,
    evaluation: EvaluationSettings,
    text: str,
    data_dir: str | None,
    device: str,
    seed: int,
    work_dir: Path,
    rungs: Sequence[int],
    on_evaluate: OnReport,
    **_: Any,
) -> Candidate:
    """LoRA on the text: train, merge, save, reload, measure. Arguments as `qat_candidate`."""
    from edgequant import models
    from edgequant.evaluation.suite import evaluate_model
    from edgequant.training.loop import train
    from edgequant.training.lora import attach
    from edgequant.workflows.finetune import deliver
    from edgequant.workflows.inputs import evaluation_data, training_sequences

    loaded = models.load(model, dtype="float32", device=device)
    data = evaluation_data(evaluation.tasks, data_dir)
    rows = training_sequences(text, loaded.tokenizer, training.sequence_length, data, data_dir, seed=seed)
    adapted = attach(loaded.model, lora, made_from=model)
    log = _observed(adapted, loaded.tokenizer, training, device, rungs, on_evaluate)
    result = train(adapted, rows, training, work_dir / "training", seed=seed, on_log=log, title=f"finetune {model}")
    made = deliver(adapted.eval(), loaded.tokenizer, work_dir, "float", dtype="auto", device=device)
    scored = validation_data(data, text, data_dir)
    merged = work_dir / "merged"
    metrics = evaluate_model(made, loaded.tokenizer, scored, evaluation, checkpoint=merged).metrics
    return Candidate(metrics | {"train/loss": result.loss}, merged)


def validation_data(data: EvaluationData, text: str, data_dir: str | None) -> EvaluationData:
    """The same tasks on data that the final evaluation does not use, where their data sets have such splits."""
    from edgequant.workflows.inputs import selection_rows

    given = {name: rows for name, rows in data.items() if rows is not None}
    return {name: selection_rows(name, rows, text, data_dir) for name, rows in given.items()}


class _ObservedTraining(QuantizedTraining):
    """Training that also measures the held-out loss at given steps, of the model as it is simulated then."""

    rungs: frozenset[int] = frozenset()

    def _train(
        self, model: Any, name: str, settings: Any, teacher: Any, on_step: Any = None, on_log: Any = None
    ) -> dict[str, float]:
        if name == "qat":
            on_log = _observed(model, self.tokenizer, settings, self.device, self.rungs, on_log)
        return super()._train(model, name, settings, teacher, on_step, on_log or _unseen)


def _unseen(step: int, metrics: Mapping[str, float]) -> None:
    """The control that teaches a trial is not part of its curves."""


def _observed(
    model: Any, tokenizer: Any, training: TrainingSettings, device: str, rungs: Collection[int], on_log: OnReport
) -> Callable[[int, Mapping[str, float]], None]:
    """`on_log`, with the held-out loss added on rungs."""
    rows = _held_out_rows(tokenizer, training.sequence_length).to(device) if rungs else None

    def log(step: int, metrics: Mapping[str, float]) -> None:
        held_out = {HELD_OUT: _loss(model, rows)} if step in rungs else {}
        on_log(step, dict(metrics) | held_out)

    return log


def _held_out_rows(tokenizer: Any, length: int) -> Any:
    from edgequant.corpora.disaster_corpus import bundled_documents
    from edgequant.corpora.packing import pack

    texts = [document.text for document in bundled_documents("validation") if document.language == "en"]
    return pack(texts, tokenizer, length)[:HELD_OUT_ROWS]


def _loss(model: Any, rows: Any) -> float:
    """Mean next-token loss in nats; leaves the model, its observers included, as it was."""
    import torch

    from edgequant.quantization import qat
    from edgequant.training.distillation import next_token_loss

    was_training = model.training
    model.eval()
    # every step sets the phase anew before it begins
    qat.set_phase(model, quantize_inputs=True, observe=False)
    with torch.no_grad():
        losses = [float(next_token_loss(model(input_ids=row, use_cache=False).logits, row)) for row in rows.split(4)]
    model.train(was_training)
    return sum(losses) / len(losses)
