"""The models that `qat` compares, each a function of the experiment: baseline, PTQ, control, PTQ of it, QAT."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgequant import models
from edgequant.folders import atomic_folder
from edgequant.models.same_function.comparison import probe_tokens
from edgequant.models.same_function.written import load_written
from edgequant.quantization import checkpoint
from edgequant.quantization.layers.convert import (
    calibrate,
    convert,
    lacks_ranges,
    learn_ranges,
    prepare,
    set_phase,
)
from edgequant.quantization.ptq.quantize import ErrorRow, choose_integers, weight_errors
from edgequant.quantization.qat import low_rank, pruning
from edgequant.quantization.qat.frozen_weights import freeze_weights
from edgequant.quantization.qat.ptq_initialization import learn_from_integers, prepare_from_ptq
from edgequant.training.distillation import next_token_loss
from edgequant.training.rate_test import RateTest
from edgequant.training.settings import UNTRAINED, TrainingSettings
from edgequant.workflows.steps.measure import Variant, quality_only
from edgequant.workflows.steps.ptq_choice import rounding_key
from edgequant.workflows.steps.qat_experiment import START_BLOCKS, Metrics, QatExperiment

PARITY_TOKENS = 256  # positions on which simulated and integer logits are compared
CHECKPOINT = "checkpoint"  # folder of what QAT delivers


def baseline(experiment: QatExperiment) -> Variant:
    """The model as it came, in the compute type of the comparison."""
    model = _cast(experiment.floating, experiment)
    parameters = {**UNTRAINED, "method": "none"}
    found = _held_out(experiment, model)
    return Variant(model, experiment.tokenizer, experiment.stored, metrics=found, parameters=parameters)


def rounded(experiment: QatExperiment) -> Variant:
    """PTQ, by the method that QAT starts from: the model rounded to the scheme without training."""
    made = _rounded(experiment, experiment.floating, "ptq")
    experiment.keep_limits(made.model)
    return made


def control(experiment: QatExperiment) -> Variant:
    """The model after training on the text without the quantiser: what QAT of it is compared with."""
    settings, model = quality_only(experiment.evaluation), _cast(experiment.trained_control, experiment)
    result = experiment.control_result
    metrics, notes = result["metrics"] | _held_out(experiment, model), result["notes"]
    parameters = _trained(experiment, "control", replace(experiment.training, distillation_weight=0.0))
    kept: dict[str, Any] = {"settings": settings, "notes": notes, "parameters": parameters}
    return Variant(model, experiment.tokenizer, experiment.stored, metrics=metrics, **kept)


def rounded_control(experiment: QatExperiment) -> Variant:
    """PTQ of the control, from which QAT starts; it may be delivered, and then stands in the registry by itself."""
    return _rounded(experiment, experiment.trained_control, "control-ptq")


def quantized(experiment: QatExperiment) -> Variant:
    """QAT: train through the quantiser, convert to integers, write the checkpoint, load it back."""
    model = _prepared(experiment)
    if lacks_ranges(model):
        calibrate(model, experiment.calibration_batches)
    if experiment.qat.learnable_scales:
        learn_ranges(model)
    rate = experiment.qat.student_learning_rate or experiment.training.learning_rate
    settings = replace(experiment.training, learning_rate=rate)
    teacher, phases = experiment.teacher, _phases(experiment, model)
    result = experiment.train(model, "qat", settings, teacher, phases, experiment.limits("ptq"))
    set_phase(model, quantize_inputs=True, observe=False)
    simulated, errors = _logits(experiment, model), weight_errors(model)
    convert(model, probe_tokens(model, experiment.tokenizer))
    metrics = _parity(experiment, simulated, _logits(experiment, model)) | result.metrics
    made = _saved_and_reloaded(experiment, model, "qat", metrics)
    return made._replace(
        layer_errors=errors, notes=result.notes, parameters=_trained(experiment, "qat", settings), as_fast_as="ptq"
    )


def variants(*, adapt: bool) -> dict[str, Callable[[QatExperiment], Variant]]:
    """What is compared, in this order: with a control of the training text where that is learned too."""
    controls = {"control": control, "control-ptq": rounded_control} if adapt else {}
    return {"baseline": baseline, "ptq": rounded, **controls, "qat": quantized}


def save_result(experiment: QatExperiment, variant: str, output: Path | None) -> Path:
    """Put the delivered variant's checkpoint where the user wants it and remove what only the comparison needed."""
    made, chosen = experiment.folder / CHECKPOINT, experiment.folder / variant
    if chosen.is_dir():  # a run that is resumed may have put it there already
        shutil.rmtree(made, ignore_errors=True)
        chosen.rename(made)
    for name in ("ptq", "control-ptq", "qat", "qat-training", "control-training", START_BLOCKS):
        shutil.rmtree(experiment.folder / name, ignore_errors=True)
    if output is None:
        return made
    with atomic_folder(output) as temporary:
        shutil.copytree(made, temporary, dirs_exist_ok=True)
    return output


def _prepared(experiment: QatExperiment) -> nn.Module:
    """A copy to train through the quantiser: pruned first, since learnable scales start from what is left."""
    settings = experiment.qat
    chosen = experiment.chosen.pop(experiment.started_by, None)
    model = copy.deepcopy(experiment.start) if chosen is None else chosen
    masks = _pruned(experiment, model)
    if chosen is not None:
        learn_from_integers(model)
    elif settings.starts_from(experiment.ptq_method):
        prepare_from_ptq(model, experiment.scheme, **_by_method(experiment))
    else:
        observer = experiment.calibration.observer
        prepare(model, experiment.scheme, observer=observer, learnable_scales=settings.learnable_scales)
    model.requires_grad_(True)
    if settings.trains(experiment.ptq_method, experiment.training.known_steps) == "scales":
        freeze_weights(model)
    if settings.lora_rank:
        low_rank.attach(model, experiment.scheme, settings.lora_rank, settings.lora_alpha, seed=experiment.seed)
    pruning.attach_masks(model, masks)
    return model


def _by_method(experiment: QatExperiment) -> dict[str, Any]:
    """How PTQ rounds and QAT starts, in the same way: decoder blocks that one finished serve the other."""
    return {
        "method": experiment.ptq_method,
        "calibration": experiment.calibration_batches,
        "calibration_settings": experiment.calibration,
        "work_folder": experiment.folder / START_BLOCKS / experiment.ptq_method,
    }


def _pruned(experiment: QatExperiment, model: nn.Module) -> pruning.Masks:
    """Prune a copy in place; nothing where the settings say nothing."""
    settings = experiment.qat
    if not settings.sparsity:
        return {}
    return pruning.prune(model, experiment.scheme, settings.sparsity, settings.sparsity_pattern)


def _phases(experiment: QatExperiment, model: nn.Module) -> Callable[[int, int], None]:
    """Activations stay unquantised at first, and static ranges stop moving late in training."""
    settings, accumulates = experiment.qat, experiment.training.gradient_accumulation > 1

    def on_step(done: int, steps: int) -> None:
        quantizes = done >= settings.activation_quant_start * steps
        observes = done < settings.freeze_observers_at * steps
        set_phase(model, quantize_inputs=quantizes, observe=observes, reuse_weights=accumulates)

    return on_step


def _rounded(experiment: QatExperiment, floating: Any, name: str) -> Variant:
    how = _by_method(experiment)

    def make() -> tuple[nn.Module, list[ErrorRow]]:
        model = copy.deepcopy(floating)
        _pruned(experiment, model)
        return model, choose_integers(model, experiment.scheme, **how)

    if name in experiment.rounded:
        model, errors = experiment.rounded.pop(name)
    elif name == "ptq":
        of = rounding_key(experiment) | {"chosen": experiment.ptq_method}
        model, errors = experiment.shared.once("rounded", of, make)
        model.to(experiment.device)  # a shared one lies in main memory
    else:
        model, errors = make()
    if name == experiment.started_by:
        experiment.chosen[name] = copy.deepcopy(model)
    convert(model, probe_tokens(model, experiment.tokenizer))
    return _saved_and_reloaded(experiment, model, name, {})._replace(
        layer_errors=errors,
        parameters={**UNTRAINED, "method": experiment.ptq_method},
        as_fast_as=None if name == "ptq" else "ptq",
    )


def _saved_and_reloaded(experiment: QatExperiment, model: Any, folder: str, metrics: Metrics) -> Variant:
    """Everything that is measured on a quantised model is measured on the one that a user would load."""
    metrics = metrics | {"size/sparsity": pruning.deployed_sparsity(model)}
    models.cast(model, experiment.dtype)
    saved = checkpoint.save(
        model,
        experiment.tokenizer,
        experiment.folder / folder,
        experiment.scheme,
        parameters=experiment.parameters,
        made_from=experiment.name,
    )
    rounded = experiment.scheme.activation is not None
    reloaded = load_written(
        saved.folder, model, experiment.tokenizer, device=experiment.device, rounded_activations=rounded
    )
    metrics |= _held_out(experiment, reloaded.model)
    return Variant(reloaded.model, reloaded.tokenizer, saved.folder, metrics)


def _trained(experiment: QatExperiment, variant: str, settings: TrainingSettings) -> dict[str, object]:
    """By what a trained variant's run is compared, with the rate and the steps that were found for it."""
    kept = experiment.folder / f"{variant}-learning-rate.json"
    test = RateTest(**json.loads(kept.read_text())) if kept.is_file() else RateTest()
    is_rounded = variant == "qat" and experiment.qat.starts_from(experiment.ptq_method)
    found = test.applied_to(settings).parameters | {"method": experiment.ptq_method if is_rounded else "none"}
    trains = experiment.qat.trains(experiment.ptq_method, experiment.training.known_steps)
    return found | {"trainable": trains} if variant == "qat" else found


def _held_out(experiment: QatExperiment, model: Any) -> Metrics:
    """Losses by which the variant to deliver is chosen."""
    return {f"held_out/{name}_loss": loss for name, loss in experiment.held_out.losses(model).items()}


def _cast(model: Any, experiment: QatExperiment) -> Any:
    return models.cast(copy.deepcopy(model), experiment.dtype)


@torch.no_grad()
def _logits(experiment: QatExperiment, model: Any) -> Tensor:
    rows = _parity_rows(experiment).to(experiment.device)
    return model(input_ids=rows, use_cache=False).logits.float()


def _parity_rows(experiment: QatExperiment) -> Tensor:
    length = experiment.sequences.shape[1]
    return experiment.sequences[-max(1, PARITY_TOKENS // length) :]


def _parity(experiment: QatExperiment, simulated: Tensor, integer: Tensor) -> Metrics:
    """How far the integers are from what was trained: largest logit error, equal predictions, perplexity."""
    rows = _parity_rows(experiment).to(experiment.device)
    same = (simulated.argmax(-1) == integer.argmax(-1)).float().mean()
    perplexities = [math.exp(float(next_token_loss(logits, rows))) for logits in (simulated, integer)]
    return {
        "parity/max_logit_error": float((simulated - integer).abs().max()),
        "parity/argmax_agreement": float(same),
        "parity/perplexity_delta": perplexities[1] - perplexities[0],
    }
