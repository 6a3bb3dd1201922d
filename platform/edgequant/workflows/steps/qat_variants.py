"""The models that `qat` compares, each a function of the experiment: baseline, PTQ, control, PTQ of it, QAT."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgequant import models
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization import checkpoint
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare, set_phase
from edgequant.quantization.ptq.quantize import quantize, weight_errors
from edgequant.quantization.qat import low_rank, pruning
from edgequant.quantization.qat.ptq_initialization import prepare_from_ptq
from edgequant.training.distillation import next_token_loss
from edgequant.workflows.steps.measure import Variant, quality_only
from edgequant.workflows.steps.qat_experiment import Metrics, QatExperiment

PARITY_TOKENS = 256  # positions on which simulated and integer logits are compared
START_BLOCKS = "start-blocks"  # folder of the decoder blocks that the PTQ method has finished
CHECKPOINT = "checkpoint"  # folder of what QAT delivers


def baseline(experiment: QatExperiment) -> Variant:
    """The model as it came, in the compute type of the comparison."""
    return Variant(_cast(experiment.floating, experiment), experiment.tokenizer)


def rounded(experiment: QatExperiment) -> Variant:
    """PTQ, by the method that QAT starts from: the model rounded to the scheme without training."""
    return _rounded(experiment, experiment.floating, "ptq", None)


def control(experiment: QatExperiment) -> Variant:
    """The same training without the quantiser: what QAT is compared with."""
    settings = quality_only(experiment.evaluation)
    return Variant(_cast(experiment.trained_control, experiment), experiment.tokenizer, settings=settings)


def rounded_control(experiment: QatExperiment) -> Variant:
    """PTQ of the control: what QAT has to beat."""
    settings = quality_only(experiment.evaluation)
    return _rounded(experiment, experiment.trained_control, "control-ptq", settings)


def quantized(experiment: QatExperiment) -> Variant:
    """QAT: train through the quantiser, convert to integers, write the checkpoint, load it back."""
    model = _prepared(experiment)
    if has_static_ranges(model):
        calibrate(model, experiment.calibration_batches)
    rate = experiment.qat.student_learning_rate or experiment.training.learning_rate
    settings = replace(experiment.training, learning_rate=rate)
    result = experiment.train(model, "qat", settings, experiment.teacher, _phases(experiment, model))
    set_phase(model, quantize_inputs=True, observe=False)
    simulated, errors = _logits(experiment, model), weight_errors(model)
    convert(model)
    parity = _parity(experiment, simulated, _logits(experiment, model))
    return _saved_and_reloaded(experiment, model, CHECKPOINT, parity | result)._replace(layer_errors=errors)


VARIANTS = {
    "baseline": baseline,
    "ptq": rounded,
    "control": control,
    "control-ptq": rounded_control,
    "qat": quantized,
}


def save_result(experiment: QatExperiment, output: str | None) -> Path:
    """Put the checkpoint where the user wants it and remove what only the comparison needed."""
    made = experiment.folder / CHECKPOINT
    for name in ("ptq", "control-ptq", "qat-training", "control-training", START_BLOCKS):
        shutil.rmtree(experiment.folder / name, ignore_errors=True)
    if output is None:
        return made
    target = Path(output).expanduser().resolve()
    shutil.copytree(made, target, dirs_exist_ok=True)
    return target


def _prepared(experiment: QatExperiment) -> nn.Module:
    """A copy to train through the quantiser: pruned first, since learnable scales start from what is left."""
    settings, by_method = experiment.qat, _by_method(experiment)
    model = copy.deepcopy(experiment.floating)
    masks = _pruned(experiment, model)
    if by_method["method"] == "rtn":
        observer = experiment.calibration.observer
        prepare(model, experiment.scheme, observer=observer, learnable_scales=settings.learnable_scales)
    else:
        prepare_from_ptq(model, experiment.scheme, **by_method)
    model.requires_grad_(True)
    if settings.lora_rank:
        low_rank.attach(model, experiment.scheme, settings.lora_rank, settings.lora_alpha, seed=experiment.seed)
    pruning.attach_masks(model, masks)
    return model


def _by_method(experiment: QatExperiment) -> dict[str, Any]:
    """How PTQ rounds and QAT starts, in the same way: decoder blocks that one finished serve the other."""
    return {
        "method": experiment.qat.start_for(experiment.scheme),
        "calibration": experiment.calibration_batches,
        "calibration_settings": experiment.calibration,
        "work_folder": experiment.folder / START_BLOCKS,
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


def _rounded(experiment: QatExperiment, floating: Any, name: str, settings: EvaluationSettings | None) -> Variant:
    model = copy.deepcopy(floating)
    _pruned(experiment, model)
    errors = quantize(model, experiment.scheme, **_by_method(experiment))
    return _saved_and_reloaded(experiment, model, name, {})._replace(settings=settings, layer_errors=errors)


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
    reloaded = models.load(str(saved.folder), device=experiment.device)
    return Variant(reloaded.model, reloaded.tokenizer, saved.folder, metrics)


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
