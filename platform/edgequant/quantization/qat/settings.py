"""What quantisation-aware training needs to know beside the scheme. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgequant.errors import UserError
from edgequant.quantization.ptq.methods import parse_method
from edgequant.settings_checks import check_types

if TYPE_CHECKING:
    from edgequant.quantization.scheme import Scheme

SparsityPattern = Literal["unstructured", "2:4"]
Trainable = Literal["auto", "all", "scales"]
FEW_STEPS = 40  # below which weights that cross from integer to integer cost more than they win


@dataclass(frozen=True, kw_only=True)
class QatSettings:
    """What QAT starts from, learns from and how fast, and when activations are quantised.

    Raises:
        UserError: a value that cannot work, alone or beside another one of these; names the setting.
    """

    init_from: str = "auto"
    """PTQ method whose integers, scales and zero points training starts from (with learnable_scales), and which makes
    the PTQ that QAT is compared with and has to beat; auto: of those that fit the machine's time the one that predicts
    held-out text best. rtn, where it is named, starts from the floating-point weights. Methods: {ptq_methods}."""

    learnable_scales: bool = True
    """Weights' scales and zero points, and static activation ranges, are trained too (LSQ+, arXiv 2004.09576) instead
    of following each group's extremes and the data."""

    distill_from: str = "auto"
    """Whose predictions count with training.distillation_weight: `base`, the model as it came; `control`, the model
    fine-tuned without the quantiser on the text, so that QAT repairs quantisation only (which is what
    `--adapt true` asks for); or another model with the same tokenizer, by name, folder or file. auto: the control where
    adapting, else the base."""

    student_learning_rate: float | None = None
    """Of QAT, where it is not training's: with the control as its teacher several times that does well."""

    max_perplexity_loss: float = 10.0
    """Per cent by which a perplexity may lie above the model's as it came; a model is `harmed` when the whole paired
    interval lies beyond, and is not offered for promotion then."""

    max_task_loss: float = 2.0
    """Points by which a task may fall, likewise."""

    max_forgetting: float | None = 2.0
    """Of `--adapt true`: per cent by which the guard text's perplexity may rise while the control learns; the control
    is moved back towards the model as it came as far as that takes (WiSE-FT, arXiv 2109.01903). None: not at all."""

    activation_quant_start: float = 0.1
    """Share of the steps before activations are quantised at all (Jacob et al. 2017, section 3.1)."""

    freeze_observers_at: float = 0.8
    """Share of the steps after which static ranges stop following the data; learned ones never follow it."""

    lora_rank: int = 0
    """Train adapters of this rank through the quantiser and merge them into the integers; 0 trains all weights. Linears
    and embeddings are frozen then; norms and learnable scales train."""

    lora_alpha: float = 16.0
    """Scale of the adapters' update W + (alpha / rank) B A."""

    sparsity: float = 0.0
    """Share of each linear's weights, the smallest, that PTQ and QAT set to 0 for good; 0 prunes nothing."""

    sparsity_pattern: SparsityPattern = "unstructured"
    """`unstructured`, or `2:4`, two zeros in every four neighbours (sparsity is 0.5 then)."""

    trainable: Trainable = "auto"
    """`all`, or `scales`: weights stay the integers that training starts from, and their scales and zero points, norms
    and biases train (EfficientQAT, arXiv 2407.11062): about a byte a parameter instead of 16. auto: scales where a
    training that starts from PTQ's integers is to have fewer than 40 steps, in which weights find no better ones."""

    def __post_init__(self) -> None:
        check_types(self, "qat")
        for name in ("activation_quant_start", "freeze_observers_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"qat.{name} must be a share of the steps, 0 to 1, got {getattr(self, name)}")
        if self.student_learning_rate is not None and self.student_learning_rate <= 0:
            raise UserError(
                f"qat.student_learning_rate must be above 0, or null for training's, got {self.student_learning_rate}"
            )
        for name in ("max_perplexity_loss", "max_task_loss"):
            if getattr(self, name) < 0:
                raise UserError(f"qat.{name} must be 0 (none is accepted) or more, got {getattr(self, name)}")
        if self.max_forgetting is not None and self.max_forgetting < 0:
            raise UserError(f"qat.max_forgetting must be 0 or more, or null for no limit, got {self.max_forgetting}")
        self._check_init_from()
        if self.lora_rank < 0:
            raise UserError(f"qat.lora_rank must be 0 (none) or more, such as 8 to 64, got {self.lora_rank}")
        if self.lora_alpha <= 0:
            raise UserError(f"qat.lora_alpha must be above 0, got {self.lora_alpha}")
        if not 0 <= self.sparsity < 1:
            raise UserError(f"qat.sparsity must be a share from 0 to below 1, got {self.sparsity}")
        if self.sparsity_pattern == "2:4" and self.sparsity != 0.5:
            raise UserError(
                f"qat.sparsity must be 0.5 with sparsity_pattern 2:4, which zeroes half, got {self.sparsity}; use "
                "that, or pattern unstructured"
            )
        self._check_trainable()

    def _check_trainable(self) -> None:
        if self.trainable != "scales":
            return
        for name, value, nothing in (("lora_rank", self.lora_rank, 0), ("sparsity", self.sparsity, 0.0)):
            if value != nothing:
                raise UserError(
                    f"qat.{name} must be {nothing} with qat.trainable scales, which changes no weight, got {value}"
                )

    def ptq_methods(self, best: list[str]) -> list[str]:
        """The PTQ methods of which the better one is what QAT is compared with.

        Args:
            best: those that fit scheme, model and machine best, for `auto`.
        """
        if self.init_from != "auto":
            return [self.init_from]
        return ["mse_clip"] if self.sparsity else best  # which keeps pruned weights at 0

    def starts_from(self, method: str) -> bool:
        """Whether training starts from the integers of the PTQ method, not from the floating-point weights."""
        return self.learnable_scales and (self.init_from == "auto" or parse_method(method).name != "rtn")

    def trains(self, method: str, steps: int) -> Literal["all", "scales"]:
        """What trains, in so many steps that start from what the PTQ method made."""
        if self.trainable != "auto":
            return self.trainable
        changes_weights = self.lora_rank or self.sparsity or not self.starts_from(method)
        return "all" if changes_weights or steps >= FEW_STEPS else "scales"

    def _check_init_from(self) -> None:
        try:
            if self.init_from == "auto" or parse_method(self.init_from).name == "rtn":
                return
        except UserError as error:
            raise UserError(f"qat.init_from {self.init_from!r}: {error}") from error
        if self.sparsity and parse_method(self.init_from).name == "mse_clip":
            return
        if not self.learnable_scales:
            raise UserError(
                f"qat.init_from {self.init_from} sets scales and zero points, which fixed ones would overrule; set "
                "qat.learnable_scales to true"
            )
        if self.sparsity:
            raise UserError(
                f"qat.init_from {self.init_from} does not keep pruned weights at 0; use init_from mse_clip or rtn, or "
                "sparsity 0"
            )

    def check_distillation(self, weight: float) -> None:
        """Refuse a teacher that nothing is learned from; `weight` is training.distillation_weight.

        Raises:
            UserError: the control is to teach, but its predictions do not count.
        """
        if self.distill_from == "control" and not weight:
            raise UserError(
                "qat.distill_from control has no effect with training.distillation_weight 0.0; set that above 0, "
                "usually to 1.0, or qat.distill_from to base"
            )

    def check_scheme(self, scheme: Scheme) -> None:
        """Refuse what a scheme cannot do.

        Raises:
            UserError: the scheme has no integer for real 0, which pruning needs.
        """
        if self.sparsity and scheme.weight is not None and scheme.weight.has_half_levels:
            raise UserError(
                f"qat.sparsity {self.sparsity} does not fit scheme {scheme.name}, whose levels lie on either side of "
                "0; use w1.58-g64, w2-g64 or one of more bits, or sparsity 0"
            )
        if self.sparsity and scheme.weight is not None and scheme.weight.zero_point == "real":
            raise UserError(
                f"qat.sparsity {self.sparsity} does not fit scheme {scheme.name}: its blocks begin at a real "
                "minimum and cannot say 0 exactly; use q4_0, q8_0 or one such as w4a8-g32+emb4, or sparsity 0"
            )
