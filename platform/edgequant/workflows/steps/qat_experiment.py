"""`QatExperiment`: one model, one scheme, one training text, loaded once; what the variants of a comparison share."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.task import EvaluationData
from edgequant.files import read_json, write_atomically
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.convert import set_phase
from edgequant.quantization.ptq.quantize import ErrorRow
from edgequant.quantization.qat.model_checks import check_model
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import Scheme
from edgequant.training.disk_room import check_checkpoint_room
from edgequant.training.loop import TrainingResult, train
from edgequant.training.rate_test import RateTest, find_learning_rate, kept_rate_test
from edgequant.training.settings import TrainingSettings
from edgequant.training.shared_parts import UNSHARED, SharedParts, control_key, shared_model
from edgequant.training.teacher_cache import check_top_k
from edgequant.training.trainer import Anchor
from edgequant.training.watch import Losses
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps.held_out import HeldOut, keep_from_forgetting, split_and_held_out
from edgequant.workflows.steps.layer_bits import resolve_layer_bits
from edgequant.workflows.steps.ptq_choice import choose_method, methods_to_try, rounding_key, rows_to_calibrate
from edgequant.workflows.steps.teacher import load_teacher

Metrics = dict[str, float]
OnStep = Callable[[str, nn.Module, int, Mapping[str, float]], None]
LIMITS = "limits.json"  # PTQ's losses on the rows that training watches
START_BLOCKS = "start-blocks"  # folder of the decoder blocks that PTQ methods have finished


def log_step(_variant: str, _model: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
    """Training's metrics on the active run, step by step."""
    tracking.log_metrics(metrics, step=step)


@dataclass(frozen=True, kw_only=True)
class QatExperiment:
    """A comparison that is ready to run; `load` makes it, and the functions of `qat_variants` take it.

    Attributes:
        scheme: what is quantised and how, bits chosen for each layer where it has a size budget.
        layer_bits: the table that says why these bits; empty without a size budget.
        adapt: whether the model is to learn the text, and QAT is judged beside a control that did; else QAT repairs
            what quantisation did to the model as it came.
        training: with its steps settled.
        floating: the model as it came, float32; variants copy it.
        stored: where its weights lie as they came, whose bytes are its size and the control's; None: nowhere.
        sequences: training text [n, sequence_length], int64.
        generated: which of them the model wrote [n], bool.
        held_out: text that no variant is trained on.
        data: what variants are measured on.
        folder: where training checkpoints and models go, and what has been measured, for a resumed run.
        dtype: compute type while measuring.
        on_step: called with variant, model, step and training's metrics after every optimiser step.
        on_look: the same with held-out losses after every look.
        shared: where experiments of one machine share PTQ's choice and integers, and a control.
        chosen: by variant, a model whose integers PTQ has chosen, until QAT starts from it; never another experiment's.
        rounded: by variant, such a model and its error table, until it is measured.
    """

    scheme: Scheme
    layer_bits: list[dict[str, Any]]
    adapt: bool
    training: TrainingSettings
    qat: QatSettings
    calibration: CalibrationSettings
    evaluation: EvaluationSettings
    floating: Any
    stored: Path | None
    tokenizer: Any
    name: str
    sequences: Tensor
    generated: Tensor
    held_out: HeldOut
    data: EvaluationData
    folder: Path
    dtype: str
    seed: int
    resume: bool
    on_step: OnStep = log_step
    on_look: OnStep = log_step
    shared: SharedParts = UNSHARED
    chosen: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)
    rounded: dict[str, tuple[nn.Module, list[ErrorRow]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def device(self) -> str:
        """Where the model lies."""
        return str(next(self.floating.parameters()).device)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the floating-point model, tied weights once."""
        return sum(parameter.numel() for parameter in self.floating.parameters())

    @cached_property
    def ptq_method(self) -> str:
        """How PTQ rounds, and QAT starts: of several that the machine has the time for, the best on held-out text."""
        kept = self.folder / "ptq-method.json"
        if self.resume and (found := read_json(kept)) is not None:
            return str(found["chosen"])
        given = (self.scheme, self.calibration_batches, self.calibration, self.held_out, self.folder / START_BLOCKS)
        what = (methods_to_try(self), self.floating, *given)
        choice = self.shared.once("ptq-choice", rounding_key(self), lambda: choose_method(*what))
        if choice.model is not None and not self.qat.sparsity:
            self.rounded["ptq"] = choice.model, choice.errors
        write_atomically(kept, json.dumps({"chosen": choice.method, "tried": choice.rows}))
        return choice.method

    @cached_property
    def calibration_batches(self) -> list[Tensor]:
        """Training sequences that show PTQ, and QAT before its first step, what activations look like."""
        rows = rows_to_calibrate(self)
        return list(rows.to(self.device).split(self.calibration.batch_size))

    @cached_property
    def trained_control(self) -> nn.Module:
        """The model after training on the text without the quantiser; trained when it is first asked for."""
        rows = [self.sequences, *self.held_out.texts.values()]
        also = {"anchored": self.anchor is not None, "max_forgetting": self.qat.max_forgetting}
        of = control_key(self.name, self.training, rows, self.seed, self.device, also)
        control, kept = self.shared.once("control", of, self._train_control)
        write_atomically(self.folder / "control-result.json", json.dumps(kept))
        return control.to(self.device)

    def _train_control(self) -> tuple[nn.Module, dict[str, Any]]:
        control = copy.deepcopy(self.floating).requires_grad_(True)
        result = self.train(control, "control", replace(self.training, distillation_weight=0.0), None)
        kept = keep_from_forgetting(control, self.floating, self.held_out, self.qat.max_forgetting)
        return control, {"metrics": result.metrics | {"train/kept_share": kept}, "notes": result.notes}

    @property
    def control_result(self) -> dict[str, Any]:
        """How the control's training went: `metrics`, and `notes` in words."""
        return dict(json.loads((self.folder / "control-result.json").read_text()))

    @property
    def started_by(self) -> str:
        """The variant that QAT starts from, where it starts from PTQ's integers and nothing is pruned; else none."""
        if not self.qat.starts_from(self.ptq_method) or self.qat.sparsity:
            return ""
        return "control-ptq" if self.adapt else "ptq"

    @property
    def start(self) -> nn.Module:
        """The floating-point model that QAT makes small: the control where it is to learn the text."""
        return self.trained_control if self.adapt else self.floating

    @cached_property
    def teacher(self) -> nn.Module | None:
        """Whose predictions QAT learns from, or None where it learns from the text alone."""
        if not self.training.distillation_weight:
            return None
        wanted = self.qat.distill_from
        if wanted not in ("auto", "base", "control"):
            return load_teacher(wanted, self.tokenizer, self.floating, self.device)
        return self.start if wanted == "auto" else self.trained_control if wanted == "control" else self.floating

    @property
    def anchor(self) -> Anchor | None:
        """What keeps a model that learns the text from forgetting: what it predicted on text that it wrote itself."""
        learns_otherwise = self.adapt and self.training.distillation_weight
        return Anchor(self.floating, self.generated) if learns_otherwise and bool(self.generated.any()) else None

    def keep_limits(self, ptq: nn.Module) -> None:
        """Note PTQ's losses on what training looks at: no worse is what the best state of QAT has to be.

        And the model's as it came, beside which a training is judged.
        """
        watch = self.held_out.watch(self.training, taught=self.teaches)
        found = {"ptq": watch.losses(ptq), "baseline": watch.losses(self.floating)}
        write_atomically(self.folder / LIMITS, json.dumps(found))

    @property
    def teaches(self) -> bool:
        """Whether a teacher runs at every step of QAT."""
        return bool(self.training.distillation_weight) and not self.training.teacher_top_k

    def train(
        self,
        model: nn.Module,
        variant: str,
        settings: TrainingSettings,
        teacher: nn.Module | None,
        on_step: Callable[[int, int], None] | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> TrainingResult:
        """Train a model in place, or go on where an interrupted run stopped; leaves it frozen and in evaluation mode.

        It ends as it was when the held-out text was predicted best. A rate that is `auto` is found first, and kept for
        a run that is resumed.

        Args:
            on_step: called with (steps done, steps) before each step.
            limits: losses on the watched rows that the best state should keep to.
        """
        as_deployed = partial(set_phase, quantize_inputs=True, observe=False) if variant == "qat" else None
        taught = self.teaches and (teacher is not None or self.anchor is not None)
        watch = self.held_out.watch(settings, taught=taught, limits=limits, as_deployed=as_deployed)
        title, test = f"{variant} {self.name}", RateTest()
        how: Any = {"teacher": teacher, "anchor": self.anchor, "watch": watch, "seed": self.seed, "on_step": on_step}
        how["document_end"] = self.tokenizer.eos_token_id
        if settings.learning_rate == "auto" or settings.max_minutes is not None:
            find = partial(find_learning_rate, model, self.sequences, settings, title=title, **how)
            test = kept_rate_test(self.folder / f"{variant}-learning-rate.json", find, resume=self.resume)
            settings = test.applied_to(settings)
        with test.rates(model):
            result = train(
                model, self.sequences, settings, self.folder / f"{variant}-training", title=title,
                on_log=lambda step, metrics: self.on_step(variant, model, step, metrics),
                on_look=lambda step, losses: self.on_look(variant, model, step, losses),
                resume=self.resume, **how,
            )  # fmt: skip
        model.requires_grad_(False).eval()
        return result

    def limits(self, variant: str) -> Losses:
        """Losses of `ptq` or `baseline` on the watched rows; empty where PTQ was not measured, as in a search."""
        kept = self.folder / LIMITS
        return dict(json.loads(kept.read_text())[variant]) if kept.is_file() else {}


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
    adapt: bool = False,
    guard: str = "self-generated",
    resume: bool = False,
    guarded: EvaluationData | None = None,
    shared: SharedParts = UNSHARED,
) -> QatExperiment:
    """Load the floating-point model and the text, and choose bits where the scheme has a size budget.

    Args:
        model: source of a floating-point model.
        dataset: training text by name or path, or a mix.
        data: what variants are measured on; the guard text is added.
        folder: of the run; a resumed one finds there what the interrupted one left.
        adapt: whether the model is to learn the text.
        guard: general text by name or path, or self-generated.
        guarded: whose texts the training text must not repeat (default: `data`).
        shared: where experiments of one machine on this data share the model, its text's tokens, PTQ and a control.

    Raises:
        UserError: the model is quantised already, the text repeats evaluation text, or a size budget cannot be met.
    """
    torch.manual_seed(run.seed)
    loaded = shared_model(shared, model, seed=run.seed, device=run.device)
    if getattr(loaded.model, "is_quantized", False):
        raise UserError(f"model must be a floating-point model, got {loaded.source.name!r}, which is quantised already")
    check_model(loaded.model, scheme, qat)
    if training.distillation_weight:
        check_top_k(loaded.model, training.teacher_top_k)
    device = str(loaded.model.device)
    wanted = training.wanted_sequences(device.partition(":")[0])
    needed = max(wanted, calibration.num_calibration_samples) if wanted else 0  # 0: as many as the text has
    text, held = split_and_held_out(
        dataset, guard, loaded, training.sequence_length, guarded or data, run, needed=needed, shared=shared
    )
    training = training.for_text(len(text.training), device.partition(":")[0])
    check_checkpoint_room(folder, loaded.model, training)
    dtype = models.pick_dtype(run.dtype, device)
    scheme, layer_bits = resolve_layer_bits(scheme, loaded.model, text.training, folder, dtype=dtype, resume=resume)
    return QatExperiment(
        scheme=scheme, layer_bits=layer_bits, adapt=adapt or qat.distill_from == "control",
        training=training, qat=qat, calibration=calibration,
        evaluation=evaluation, floating=loaded.model, stored=loaded.stored,
        tokenizer=loaded.tokenizer, name=loaded.source.family,
        sequences=text.training, generated=text.generated, held_out=held, data={**data, "guard": held.reported},
        folder=folder, dtype=dtype, seed=run.seed, resume=resume, shared=shared,
    )  # fmt: skip
