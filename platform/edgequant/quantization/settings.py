"""What quantisation-aware training needs to know beside the scheme. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgequant.errors import UserError
from edgequant.quantization.ptq_methods import parse_method
from edgequant.quantization.scheme import ObserverName

if TYPE_CHECKING:
    from edgequant.quantization.scheme import Scheme

SparsityPattern = Literal["unstructured", "2:4"]
TeacherName = Literal["base", "control"]


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings:
    """What QAT learns from and how fast, when activations are quantised, and how static ranges are found.

    Attributes:
        activation_delay: share of the steps before activations are quantised at all (Jacob et al. 2017, section 3.1).
        freeze_ranges: share of the steps after which static ranges stop following the data.
        observer: of static ranges: `moving_average_minmax` (of each batch's extremes), `minmax`, `percentile` or `mse`.
        learned_scales: weights' scales and zero points are trained too (LSQ+, arXiv 2004.09576) instead of following
            each group's extremes.
        start: PTQ method whose integers, scales and zero points training starts from (with learned_scales), and which
            makes the PTQ that QAT is compared with; rtn starts from the floating-point weights. auto takes smoothquant,
            and learns its scales, where activations have static ranges, else rtn. Methods: {ptq_methods}.
        teacher: whose predictions count with training.distillation: `base`, the model as it came, or `control`, the
            model fine-tuned without the quantiser (which then learns from the text alone): QAT repairs quantisation
            only.
        qat_learning_rate: of QAT, where it is not training's: with the control as its teacher several times that does
            well.
        calibration_sequences: training sequences that show PTQ (and QAT, before its first step) the static ranges.
        lora_rank: train adapters of this rank through the quantiser and merge them into the integers; 0 trains all
            weights. Linears and embeddings are frozen then; norms and learned scales train.
        lora_alpha: scale of the adapters' update W + (alpha / rank) B A.
        sparsity: share of each linear's weights, the smallest, that PTQ and QAT set to 0 for good; 0 prunes nothing.
        sparsity_pattern: `unstructured`, or `2:4`, two zeros in every four neighbours (sparsity is 0.5 then).
    """

    activation_delay: float = 0.1
    freeze_ranges: float = 0.8
    observer: ObserverName = "moving_average_minmax"
    learned_scales: bool = False
    start: str = "auto"
    teacher: TeacherName = "base"
    qat_learning_rate: float | None = None
    calibration_sequences: int = 32
    lora_rank: int = 0
    lora_alpha: float = 16.0
    sparsity: float = 0.0
    sparsity_pattern: SparsityPattern = "unstructured"

    def __post_init__(self) -> None:
        for name in ("activation_delay", "freeze_ranges"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"quantization.{name} {getattr(self, name)} is impossible; expected a share of the steps, 0 to 1"
                )
        if self.qat_learning_rate is not None and not 0 < self.qat_learning_rate < float("inf"):
            raise UserError(
                f"quantization.qat_learning_rate {self.qat_learning_rate} is impossible; expected a number above 0, or "
                "null for training's"
            )
        if self.calibration_sequences < 1:
            raise UserError(
                f"quantization.calibration_sequences {self.calibration_sequences} is impossible; expected at least 1"
            )
        self._check_start()
        if self.lora_rank < 0:
            raise UserError(f"quantization.lora_rank {self.lora_rank} is impossible; expected 0 (none), or 8 to 64")
        if not 0 < self.lora_alpha < float("inf"):
            raise UserError(f"quantization.lora_alpha {self.lora_alpha} is impossible; expected a number above 0")
        if not 0 <= self.sparsity < 1:
            raise UserError(f"quantization.sparsity {self.sparsity} is impossible; expected a share from 0 to below 1")
        if self.sparsity_pattern == "2:4" and self.sparsity != 0.5:
            raise UserError(
                f"quantization.sparsity {self.sparsity} does not fit sparsity_pattern 2:4, which zeroes half; "
                "use sparsity 0.5, or pattern unstructured"
            )

    def start_for(self, scheme: Scheme) -> str:
        """The PTQ method that training starts from."""
        if self.start != "auto":
            return self.start
        static = scheme.activation is not None and scheme.activation.mode == "static"
        return "smoothquant" if static and not self.sparsity else "rtn"

    def _check_start(self) -> None:
        if self.start == "auto" or parse_method(self.start).name == "rtn":
            return
        if not self.learned_scales:
            raise UserError(
                f"quantization.start {self.start} sets scales and zero points, which fixed ones would overrule; set "
                "quantization.learned_scales to true"
            )
        if self.sparsity:
            raise UserError(
                f"quantization.start {self.start} does not keep pruned weights at 0; use start rtn, or sparsity 0"
            )

    def check_distillation(self, share: float) -> None:
        """Refuse a teacher that nothing is learned from; `share` is training.distillation.

        Raises:
            UserError: the control is to teach, but its predictions do not count.
        """
        if self.teacher == "control" and not share:
            raise UserError(
                "quantization.teacher control has no effect with training.distillation 0.0; set that to a share above "
                "0, usually 1.0, or quantization.teacher to base"
            )

    def check_scheme(self, scheme: Scheme) -> None:
        """Refuse what a scheme cannot do.

        Raises:
            UserError: the scheme has no integer for real 0, which pruning needs.
        """
        if self.sparsity and scheme.weight is not None and scheme.weight.zero_point == "real":
            raise UserError(
                f"quantization.sparsity {self.sparsity} does not fit scheme {scheme.name}: its blocks begin at a real "
                "minimum and cannot say 0 exactly; use q4_0, q8_0 or one such as w4a8-g32+emb4, or sparsity 0"
            )
