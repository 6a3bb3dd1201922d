"""`QatExperiment`: one model, one scheme, one training text, loaded once; what the variants of a comparison share."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.task import EvaluationData
from edgequant.files import write_atomically
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.convert import set_phase
from edgequant.quantization.qat import low_rank, pruning
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import Scheme
from edgequant.training.loop import TrainingResult, train
from edgequant.training.rate_test import RateTest, find_learning_rate
from edgequant.training.settings import TrainingSettings
from edgequant.training.teacher_cache import check_top_k
from edgequant.training.watch import Losses
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps.held_out import HeldOut, held_out, set_apart
from edgequant.workflows.steps.layer_bits import resolve_layer_bits
from edgequant.workflows.steps.ptq_choice import candidates, choose_method
from edgequant.workflows.steps.sequences import split_sequences
from edgequant.workflows.steps.teacher import load_teacher

Metrics = dict[str, float]
OnStep = Callable[[str, nn.Module, int, Mapping[str, float]], None]
LIMITS = "limits.json"  # PTQ's losses on the rows that training watches
START_BLOCKS = "start-blocks"  # folder of the decoder blocks that PTQ methods have finished
OWN_TEACHERS = ("auto", "base", "control")


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
        sequences: training text [n, sequence_length], int64.
        generated: which of them the model wrote [n], bool.
        held_out: text that no variant is trained on.
        data: what variants are measured on.
        folder: where training checkpoints and models go, and what has been measured, for a resumed run.
        dtype: compute type while measuring.
        on_step: called with variant, model, step and training's metrics after every optimiser step.
        on_look: the same with held-out losses after every look.
        chosen: by variant, a model whose integers PTQ has chosen, until QAT starts from it; never another experiment's.
    """

    scheme: Scheme
    layer_bits: list[dict[str, Any]]
    adapt: bool
    training: TrainingSettings
    qat: QatSettings
    calibration: CalibrationSettings
    evaluation: EvaluationSettings
    floating: Any
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
    chosen: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

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
        if self.resume and kept.is_file():
            return str(json.loads(kept.read_text())["chosen"])
        names = self.qat.ptq_methods(candidates(self.scheme, self.parameters, self.device))
        chosen, rows = names[0], list[dict[str, Any]]()
        if len(names) > 1:
            chosen, rows = choose_method(
                names, self.floating, self.scheme, self.calibration_batches, self.calibration, self.held_out,
                self.folder / START_BLOCKS,
            )  # fmt: skip
        write_atomically(kept, json.dumps({"chosen": chosen, "tried": rows}))
        return chosen

    @property
    def calibration_batches(self) -> list[Tensor]:
        """Training sequences that show PTQ, and QAT before its first step, what activations look like.

        Text that the model did not write comes first: integers chosen on its own text cost tasks more.
        """
        ordered = torch.cat([self.sequences[~self.generated], self.sequences[self.generated]])
        chosen = ordered[: self.calibration.num_calibration_samples].to(self.device)
        return list(chosen.split(self.calibration.batch_size))

    @cached_property
    def trained_control(self) -> nn.Module:
        """The model after training on the text without the quantiser; trained when it is first asked for."""
        control = copy.deepcopy(self.floating).requires_grad_(True)
        result = self.train(control, "control", replace(self.training, distillation_weight=0.0), None)
        kept = {"metrics": result.metrics, "notes": result.notes}
        write_atomically(self.folder / "control-result.json", json.dumps(kept))
        return control

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
        if wanted not in OWN_TEACHERS:
            return load_teacher(wanted, self.tokenizer, self.floating, self.device)
        return self.start if wanted == "auto" else self.trained_control if wanted == "control" else self.floating

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
        taught = self.teaches and teacher is not None
        watch = self.held_out.watch(settings, taught=taught, limits=limits, as_deployed=as_deployed)
        title = f"{variant} {self.name}"
        shared: dict[str, Any] = {"teacher": teacher, "watch": watch, "seed": self.seed, "on_step": on_step}
        test = RateTest()
        if settings.learning_rate == "auto" or settings.max_minutes is not None:
            given = settings
            test = self._rate_test(
                variant, lambda: find_learning_rate(model, self.sequences, given, title=title, **shared)
            )
            settings = test.applied_to(settings)
        with test.rates(model):
            result = train(
                model, self.sequences, settings, self.folder / f"{variant}-training", resume=self.resume, title=title,
                on_log=lambda step, metrics: self.on_step(variant, model, step, metrics),
                on_look=lambda step, losses: self.on_look(variant, model, step, losses), **shared,
            )  # fmt: skip
        model.requires_grad_(False)
        model.eval()
        return result

    def _rate_test(self, variant: str, run: Callable[[], RateTest]) -> RateTest:
        kept = self.folder / f"{variant}-learning-rate.json"
        if self.resume and kept.is_file():
            return RateTest(**json.loads(kept.read_text()))
        found = run()
        write_atomically(kept, json.dumps(asdict(found)))
        return found

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

    Raises:
        UserError: the model is quantised already, the text repeats evaluation text, or a size budget cannot be met.
    """
    torch.manual_seed(run.seed)
    loaded = models.load(model, dtype="float32", device=run.device)
    if getattr(loaded.model, "is_quantized", False):
        raise UserError(f"model must be a floating-point model, got {loaded.source.name!r}, which is quantised already")
    check_model(loaded.model, scheme, training, qat)
    device = str(loaded.model.device)
    wanted = training.wanted_sequences(device.partition(":")[0])
    needed = max(wanted, calibration.num_calibration_samples) if wanted else 0  # 0: as many as the text has
    text = split_sequences(
        dataset, loaded.tokenizer, training.sequence_length, guarded or data, run.data_dir, seed=run.seed,
        model=loaded.model, needed=needed, set_apart=partial(set_apart, device=device),
    )  # fmt: skip
    held = held_out(
        guard, text.validation, loaded.model, loaded.tokenizer, training.sequence_length, run.data_dir, seed=run.seed
    )
    dtype = models.pick_dtype(run.dtype, device)
    scheme, layer_bits = resolve_layer_bits(scheme, loaded.model, text.training, folder, dtype=dtype, resume=resume)
    return QatExperiment(
        scheme=scheme, layer_bits=layer_bits, adapt=adapt or qat.distill_from == "control",
        training=training.for_text(len(text.training), device.partition(":")[0]), qat=qat, calibration=calibration,
        evaluation=evaluation, floating=loaded.model, tokenizer=loaded.tokenizer, name=loaded.source.name,
        sequences=text.training, generated=text.generated, held_out=held, data={**data, "guard": held.reported},
        folder=folder, dtype=dtype, seed=run.seed, resume=resume,
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
