"""What a training run needs to know. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgequant.errors import UserError

Precision = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long, on how much at a time, how fast.

    Raises:
        UserError: a value that cannot work; names the setting.
    """

    steps: int = 32
    """Optimiser steps."""

    batch_size: int = 4
    """Sequences in a forward pass."""

    gradient_accumulation: int = 1
    """Forward passes per optimiser step."""

    sequence_length: int = 128
    """Tokens per sequence."""

    learning_rate: float = 1e-4
    """Peak of the cosine schedule."""

    warmup_fraction: float = 0.1
    """Share of the steps that raise the learning rate from 0."""

    weight_decay: float = 0.0
    """AdamW's, on matrices only."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""

    precision: Precision = "auto"
    """Of the forward pass; master weights stay in float32. `auto`: bfloat16 where the device computes it natively."""

    distillation_weight: float = 0.0
    """Share of the loss that is the divergence from the floating-point model's predictions; the rest is cross-entropy
    on the text."""

    temperature: float = 1.0
    """Softens both distributions in the divergence."""

    teacher_top_k: int = 0
    """Compute the floating-point model's k most probable tokens once for every sequence that is drawn, and keep them in
    the cache folder for later runs; the divergence is then over these and one class for all other tokens. 0 runs the
    model at every step. Without distillation it has no effect."""

    save_steps: int | None = None
    """Steps between checkpoints that --resume continues from; None saves four times, 0 never."""

    compile: bool | None = None
    """Translate the model's repeated blocks with torch.compile; None does so where it pays, on a GPU from 200 forward
    passes on."""

    gradient_checkpointing: bool = False
    """Keep only the input of each repeated block for the backward pass and compute the block again there: less memory,
    about a third more time."""

    def __post_init__(self) -> None:
        self._check_at_least(1, "steps", "batch_size", "gradient_accumulation")
        self._check_at_least(2, "sequence_length")
        self._check_at_least(0, "weight_decay", "teacher_top_k", *(() if self.save_steps is None else ("save_steps",)))
        for name in ("learning_rate", "max_grad_norm", "temperature"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UserError(f"training.{name} must be above 0, got {value}")
        for name in ("warmup_fraction", "distillation_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training.{name} must be a share between 0 and 1, got {getattr(self, name)}")

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise UserError(f"training.{name} must be at least {least}, got {value}")

    @property
    def sequences(self) -> int:
        """Sequences that all steps together draw."""
        return self.steps * self.batch_size * self.gradient_accumulation

    @property
    def passes(self) -> int:
        """Forward and backward passes of all steps together."""
        return self.steps * self.gradient_accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees."""
        return self.batch_size * self.gradient_accumulation * self.sequence_length

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints; 0 for none."""
        return -(-self.steps // 4) if self.save_steps is None else self.save_steps


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685).

    Raises:
        UserError: a value that cannot work; names the setting.
    """

    rank: int = 16
    """Of the update W + (alpha / rank) B A."""

    alpha: float = 32.0
    """Its scale."""

    dropout: float = 0.0
    """On the adapters' input."""

    targets: str = "all-linear"
    """`all-linear`, or comma-separated module names such as q_proj,v_proj."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank must be at least 1, such as 8 or 16, got {self.rank}")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha must be above 0, usually twice the rank, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be a share from 0 to below 1, got {self.dropout}")
        if not self.targets.strip():
            raise UserError("lora.targets must be all-linear or module names such as q_proj,v_proj, got nothing")
