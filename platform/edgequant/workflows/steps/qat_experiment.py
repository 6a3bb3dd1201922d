"""`QatExperiment`: one model, one scheme, one training text, loaded once; what the variants of a comparison share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.task import EvaluationData
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat import low_rank, pruning
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import Scheme
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings
from edgequant.training.teacher_cache import check_top_k
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps.data import training_sequences
from edgequant.workflows.steps.layer_bits import resolve_layer_bits

Metrics = dict[str, float]
OnStep = Callable[[str, nn.Module, int, Mapping[str, float]], None]


def log_step(_variant: str, _model: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
    """Training's metrics on the active run, step by step."""
    tracking.log_metrics(metrics, step=step)


@dataclass(frozen=True, kw_only=True)
class QatExperiment:
    """A comparison that is ready to run; `load` makes it, and the functions of `qat_variants` take it.

    Attributes:
        scheme: what is quantised and how, bits chosen for each layer where it has a size budget.
        layer_bits: the table that says why these bits; empty without a size budget.
        floating: the model as it came, float32; variants copy it.
        sequences: training text [n, sequence_length], int64.
        data: what variants are measured on.
        folder: where training checkpoints and models go, and what has been measured, for a resumed run.
        dtype: compute type while measuring.
        on_step: called with variant, model, step and training's metrics after every optimiser step.
    """

    scheme: Scheme
    layer_bits: list[dict[str, Any]]
    training: TrainingSettings
    qat: QatSettings
    calibration: CalibrationSettings
    evaluation: EvaluationSettings
    floating: Any
    tokenizer: Any
    name: str
    sequences: Tensor
    data: EvaluationData
    folder: Path
    dtype: str
    seed: int
    resume: bool
    on_step: OnStep

    @property
    def device(self) -> str:
        """Where the model lies."""
        return str(next(self.floating.parameters()).device)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the floating-point model, tied weights once."""
        return sum(parameter.numel() for parameter in self.floating.parameters())

    @property
    def calibration_batches(self) -> list[Tensor]:
        """Training sequences that show PTQ, and QAT before its first step, what activations look like."""
        chosen = self.sequences[: self.calibration.num_calibration_samples].to(self.device)
        return list(chosen.split(self.calibration.batch_size))

    @cached_property
    def trained_control(self) -> nn.Module:
        """The model after the same training without the quantiser; trained when it is first asked for."""
        control = copy.deepcopy(self.floating).requires_grad_(True)
        weight = self.training.distillation_weight if self.qat.distill_from == "base" else 0.0
        settings = replace(self.training, distillation_weight=weight)
        self.train(control, "control", settings, self.floating if weight else None)
        return control

    @property
    def teacher(self) -> nn.Module | None:
        """Whose predictions QAT learns from, or None where it learns from the text alone."""
        if not self.training.distillation_weight:
            return None
        return self.trained_control if self.qat.distill_from == "control" else self.floating

    def train(
        self,
        model: nn.Module,
        variant: str,
        settings: TrainingSettings,
        teacher: nn.Module | None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Metrics:
        """Train a model in place, or go on where an interrupted run stopped; leaves it frozen and in evaluation mode.

        Args:
            on_step: called with (steps done, steps) before each step.
        """
        result = train(
            model,
            self.sequences,
            settings,
            self.folder / f"{variant}-training",
            teacher=teacher,
            seed=self.seed,
            resume=self.resume,
            title=f"{variant} {self.name}",
            on_step=on_step,
            on_log=lambda step, metrics: self.on_step(variant, model, step, metrics),
        )
        model.requires_grad_(False)
        model.eval()
        return {"train/loss": result.loss, "train/tokens_per_second": result.tokens_per_second}


def load(
    model: str | models.ModelSource,
    scheme: Scheme,
    dataset: str,
    *,
    training: TrainingSettings,
    qat: QatSettings,
    calibration: CalibrationSettings,
    evaluation: EvaluationSettings,
    data: EvaluationData,
    folder: Path,
    run: RunSettings,
    resume: bool = False,
    guarded: EvaluationData | None = None,
    on_step: OnStep = log_step,
) -> QatExperiment:
    """Load the floating-point model and the training text, and choose bits where the scheme has a size budget.

    Args:
        model: source of a floating-point model.
        dataset: training text by name or path, or a mix.
        data: what variants are measured on.
        guarded: whose texts the training text must not repeat (default: `data`).
        folder: of the run; a resumed one finds there what the interrupted one left.

    Raises:
        UserError: the model is quantised already, the text repeats evaluation text, or a size budget cannot be met.
    """
    torch.manual_seed(run.seed)
    loaded = models.load(model, dtype="float32", device=run.device)
    if getattr(loaded.model, "is_quantized", False):
        raise UserError(f"model must be a floating-point model, got {loaded.source.name!r}, which is quantised already")
    check_model(loaded.model, scheme, training, qat)
    needed = max(training.sequences, calibration.num_calibration_samples)
    sequences = training_sequences(
        dataset, loaded.tokenizer, training.sequence_length, guarded or data, run.data_dir, seed=run.seed,
        model=loaded.model, needed=needed,
    )  # fmt: skip
    dtype = models.pick_dtype(run.dtype, str(loaded.model.device))
    scheme, layer_bits = resolve_layer_bits(scheme, loaded.model, sequences, folder, dtype=dtype, resume=resume)
    return QatExperiment(
        scheme=scheme, layer_bits=layer_bits, training=training, qat=qat, calibration=calibration,
        evaluation=evaluation, floating=loaded.model, tokenizer=loaded.tokenizer, name=loaded.source.name,
        sequences=sequences, data=data, folder=folder, dtype=dtype, seed=run.seed, resume=resume, on_step=on_step,
    )  # fmt: skip


def check_model(model: Any, scheme: Scheme, training: TrainingSettings, qat: QatSettings) -> None:
    """Refuse settings that this model cannot follow.

    Raises:
        UserError: an adapter rank, a sparsity pattern or a teacher's k that does not fit; names the layer.
    """
    low_rank.check_rank(model, scheme, qat.lora_rank)
    pruning.check_pattern(model, scheme, qat.sparsity_pattern)
    if training.distillation_weight:
        check_top_k(model, training.teacher_top_k)
