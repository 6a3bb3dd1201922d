"""The models that `qat` compares, each made and measured once: baseline, rounded, control, trained."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.task import EvaluationData
from edgequant.files import write_atomically
from edgequant.quantization import checkpoint, low_rank, pruning, ptq, qat
from edgequant.quantization.ptq_settings import PtqSettings
from edgequant.quantization.scheme import Scheme
from edgequant.quantization.settings import QuantizationSettings
from edgequant.quantization.training_start import prepare_from_ptq
from edgequant.training.distillation import next_token_loss
from edgequant.training.loop import OnLog, train
from edgequant.training.settings import TrainingSettings
from edgequant.training.teacher_cache import check_top_k
from edgequant.workflows.inputs import evaluation_data, training_sequences
from edgequant.workflows.layer_bits import choose
from edgequant.workflows.measuring import log_layer_errors, measure, quality_only, say

Metrics = dict[str, float]
CALIBRATION_BATCH = 8
PARITY_TOKENS = 256  # positions on which simulated and integer logits are compared
START_BLOCKS = "start-blocks"  # folder of the decoder blocks that the PTQ method has finished


class Measurable(NamedTuple):
    """A model ready to be measured.

    `checkpoint`: its folder on disk; `metrics` and `layer_errors`: what making it told already.
    """

    model: Any
    tokenizer: Any
    checkpoint: Path | None = None
    metrics: Mapping[str, float] = {}
    settings: EvaluationSettings | None = None
    layer_errors: Sequence[Mapping[str, Any]] = ()


def run_folder(workflow: str, run_id: str) -> Path:
    """Where a run keeps its files: outputs/<workflow>/<run id> in the working directory."""
    return Path("outputs").resolve() / workflow / run_id


class QuantizedTraining:
    """One model, one scheme, one training text; every variant of the comparison is a method.

    What has been measured is kept as <variant>.json in `folder`, and training checkpoints beside it, so that a resumed
    run goes on where the interrupted one stopped.
    """

    def __init__(
        self,
        scheme: Scheme,
        training: TrainingSettings,
        quantization: QuantizationSettings,
        evaluation: EvaluationSettings,
        folder: Path,
        *,
        seed: int = 0,
        dtype: str = "auto",
    ) -> None:
        self.scheme, self.training, self.quantization, self.evaluation = scheme, training, quantization, evaluation
        self.folder, self.seed, self.dtype = folder, seed, dtype
        self.resume = False
        self._control: nn.Module | None = None

    def load(self, model: str, text: str, data_dir: str | None, *, device: str = "auto", resume: bool = False) -> None:
        """Load the floating-point model, the evaluation data and the training text.

        Raises:
            UserError: the model is quantised already, the text repeats evaluation text, or a size budget cannot be met.
        """
        torch.manual_seed(self.seed)
        loaded = models.load(model, dtype="float32", device=device)
        if getattr(loaded.model, "is_quantized", False):
            raise UserError(f"model {model!r} is quantised already; start from the floating-point model")
        self.floating, self.tokenizer, self.name = loaded.model, loaded.tokenizer, loaded.source.name
        self.device = str(next(self.floating.parameters()).device)
        self.dtype = models.pick_dtype(self.dtype, self.device)
        self.parameters = sum(parameter.numel() for parameter in self.floating.parameters())
        low_rank.check_rank(self.floating, self.scheme, self.quantization.lora_rank)
        pruning.check_pattern(self.floating, self.scheme, self.quantization.sparsity_pattern)
        if self.training.distillation:
            check_top_k(self.floating, self.training.teacher_top_k)
        self.data: EvaluationData = evaluation_data(self.evaluation.tasks, data_dir)
        length = self.training.sequence_length
        self.sequences = training_sequences(
            text, self.tokenizer, length, self.data, data_dir, seed=self.seed, model=self.floating, needed=self._needed
        )
        self.resume = resume
        kept: dict[str, Any] = {"folder": self.folder, "dtype": self.dtype, "resume": resume}
        self.scheme, self.layer_bits = choose(self.scheme, self.floating, self.sequences, **kept)

    @property
    def _needed(self) -> int:
        """Sequences that training draws and calibration sees."""
        return max(self.training.sequences, self.quantization.calibration_sequences)

    def measured(self, variant: str, make: Callable[[], Measurable]) -> Metrics:
        """Make a variant and measure it in a nested run, unless the interrupted run had done so."""
        kept = self.folder / f"{variant}.json"
        if self.resume and kept.is_file():
            return dict(json.loads(kept.read_text()))
        scheme = "none" if variant in ("baseline", "control") else self.scheme.name
        with tracking.variant_run(variant, model=self.name, scheme=scheme, phase="qat"):
            made = make()
            settings = made.settings or self.evaluation
            metrics = measure(made.model, made.tokenizer, self.data, settings, checkpoint=made.checkpoint)
            tracking.log_metrics(made.metrics)
            log_layer_errors(made.layer_errors)
        metrics |= made.metrics
        say(variant, metrics)
        write_atomically(kept, json.dumps(metrics))
        return metrics

    # ------------------------------------------------------------------------------------------------------ variants

    def baseline(self) -> Measurable:
        """The model as it came, in the compute type of the comparison."""
        return Measurable(self._cast(self.floating), self.tokenizer)

    def rounded(self) -> Measurable:
        """PTQ, by the method that QAT starts from: the model rounded to the scheme without training."""
        return self._rounded(self.floating, "ptq", None)

    def control(self) -> Measurable:
        """The same training without the quantiser: what QAT is compared with."""
        return Measurable(self._cast(self._trained_control()), self.tokenizer, settings=quality_only(self.evaluation))

    def rounded_control(self) -> Measurable:
        """PTQ of the control: what QAT has to beat."""
        return self._rounded(self._trained_control(), "control-ptq", quality_only(self.evaluation))

    def quantized(self, on_log: OnLog | None = None) -> Measurable:
        """QAT: train through the quantiser, convert to integers, write the checkpoint, load it back."""
        model = self._prepared()
        if qat.has_static_ranges(model):
            qat.calibrate(model, self._calibration())
        rate = self.quantization.qat_learning_rate or self.training.learning_rate
        settings = replace(self.training, learning_rate=rate)
        result = self._train(model, "qat", settings, self._teacher(), self._phases(model), on_log)
        qat.set_phase(model, quantize_inputs=True, observe=False)
        simulated, errors = self._logits(model), ptq.weight_errors(model)
        qat.convert(model)
        parity = self._parity(simulated, self._logits(model))
        return self._saved_and_reloaded(model, "checkpoint", parity | result)._replace(layer_errors=errors)

    # ------------------------------------------------------------------------------------------------- how, in detail

    def _prepared(self) -> nn.Module:
        """A copy to train through the quantiser: pruned first, since learned scales start from what is left."""
        settings, by_method = self.quantization, self._by_method()
        model = copy.deepcopy(self.floating)
        masks = self._pruned(model)
        if by_method["method"] == "rtn":
            qat.prepare(model, self.scheme, observer=settings.observer, learned_scales=settings.learned_scales)
        else:
            prepare_from_ptq(model, self.scheme, **by_method)
        model.requires_grad_(True)
        if settings.lora_rank:
            low_rank.attach(model, self.scheme, settings.lora_rank, settings.lora_alpha, seed=self.seed)
        pruning.hold(model, masks)
        return model

    def _by_method(self) -> dict[str, Any]:
        """How PTQ rounds and QAT starts, in the same way: decoder blocks that one finished serve the other."""
        return {
            "method": self.quantization.start_for(self.scheme),
            "calibration": self._calibration(),
            "settings": PtqSettings(observer=self.quantization.observer),
            "work_folder": self.folder / START_BLOCKS,
        }

    def _pruned(self, model: nn.Module) -> pruning.Masks:
        """Prune a copy in place; nothing where the settings say nothing."""
        if not self.quantization.sparsity:
            return {}
        return pruning.prune(model, self.scheme, self.quantization.sparsity, self.quantization.sparsity_pattern)

    def _trained_control(self) -> nn.Module:
        if self._control is None:
            self._control = copy.deepcopy(self.floating).requires_grad_(True)
            share = self.training.distillation if self.quantization.teacher == "base" else 0.0
            settings = replace(self.training, distillation=share)
            self._train(self._control, "control", settings, self.floating if share else None)
        return self._control

    def _teacher(self) -> nn.Module | None:
        """Whose predictions QAT learns from."""
        if not self.training.distillation:
            return None
        return self._trained_control() if self.quantization.teacher == "control" else self.floating

    def _train(
        self,
        model: nn.Module,
        name: str,
        settings: TrainingSettings,
        teacher: nn.Module | None,
        on_step: Callable[[int, int], None] | None = None,
        on_log: OnLog | None = None,
    ) -> Metrics:
        result = train(
            model,
            self.sequences,
            settings,
            self.folder / f"{name}-training",
            teacher=teacher,
            seed=self.seed,
            resume=self.resume,
            title=f"{name} {self.name}",
            on_step=on_step,
            on_log=on_log or (lambda step, metrics: tracking.log_metrics(metrics, step=step)),
        )
        model.requires_grad_(False)
        model.eval()
        return {"train/loss": result.loss, "train/tokens_per_second": result.tokens_per_second}

    def _phases(self, model: nn.Module) -> Callable[[int, int], None]:
        """Activations stay unquantised at first, and static ranges stop moving late in training."""
        settings, accumulates = self.quantization, self.training.gradient_accumulation > 1

        def set_phase(done: int, steps: int) -> None:
            delayed, observe = done < settings.activation_delay * steps, done < settings.freeze_ranges * steps
            qat.set_phase(model, quantize_inputs=not delayed, observe=observe, reuse_weights=accumulates)

        return set_phase

    def _calibration(self) -> list[Tensor]:
        chosen = self.sequences[: self.quantization.calibration_sequences].to(self.device)
        return list(chosen.split(CALIBRATION_BATCH))

    def _rounded(self, floating: Any, name: str, settings: EvaluationSettings | None) -> Measurable:
        model = copy.deepcopy(floating)
        self._pruned(model)
        errors = ptq.quantize(model, self.scheme, **self._by_method())
        return self._saved_and_reloaded(model, name, {})._replace(settings=settings, layer_errors=errors)

    def _saved_and_reloaded(self, model: Any, folder: str, metrics: Metrics) -> Measurable:
        """Everything that is measured on a quantised model is measured on the one that a user would load."""
        metrics = metrics | {"size/sparsity": pruning.deployed_sparsity(model)}
        models.cast(model, self.dtype)
        saved = checkpoint.save(
            model,
            self.tokenizer,
            self.folder / folder,
            self.scheme,
            parameters=self.parameters,
            made_from=self.name,
        )
        reloaded = models.load(str(saved.folder), device=self.device)
        return Measurable(reloaded.model, reloaded.tokenizer, saved.folder, metrics)

    def _cast(self, model: Any) -> Any:
        return models.cast(copy.deepcopy(model), self.dtype)

    @torch.no_grad()
    def _logits(self, model: Any) -> Tensor:
        length = self.sequences.shape[1]
        rows = self.sequences[-max(1, PARITY_TOKENS // length) :].to(self.device)
        return model(input_ids=rows, use_cache=False).logits.float()

    def _parity(self, simulated: Tensor, integer: Tensor) -> Metrics:
        """How far the integers are from what was trained: largest logit error, equal predictions, perplexity."""
        rows = self.sequences[-simulated.shape[0] :].to(self.device)
        same = (simulated.argmax(-1) == integer.argmax(-1)).float().mean()
        perplexities = [math.exp(float(next_token_loss(logits, rows))) for logits in (simulated, integer)]
        return {
            "parity/max_logit_error": float((simulated - integer).abs().max()),
            "parity/argmax_agreement": float(same),
            "parity/perplexity_delta": perplexities[1] - perplexities[0],
        }

    def deliver(self, output: str | None) -> Path:
        """Put the checkpoint where the user wants it and remove what only the comparison needed."""
        made = self.folder / "checkpoint"
        for name in ("ptq", "control-ptq", "qat-training", "control-training", START_BLOCKS):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if output is None:
            return made
        target = Path(output).expanduser().resolve()
        shutil.copytree(made, target, dirs_exist_ok=True)
        return target
