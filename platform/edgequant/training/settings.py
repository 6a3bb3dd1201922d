"""What a training run needs to know. Light: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from edgequant.errors import UserError
from edgequant.settings_checks import check_types

Precision = Literal["auto", "bfloat16", "float32"]
STEPS_WORTH_SAVING = 20  # fewer are sooner done again than a large model is written four times
# parameters of a run whose model was not trained: absent ones would keep it out of MLflow's parallel coordinates
UNTRAINED: dict[str, object] = {"steps": 0, "learning_rate": 0.0, "distillation": 0.0}
CPU_TOKENS = 10_240  # what `max_tokens: auto` allows on a CPU: minutes for a model of 135 million parameters


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long, on how much at a time, how fast.

    Raises:
        UserError: a value that cannot work; names the setting.
    """

    steps: int | None = None
    """Optimiser steps; None: as many as `epochs` over the text make, within `max_tokens`."""

    epochs: float = 1.0
    """Passes over the text where `steps` are not given. From the second on a small text is learned by heart."""

    max_tokens: int | Literal["auto"] | None = "auto"
    """Most tokens that `epochs` may draw; auto: 10,240 on a CPU, so that a first run ends in minutes, no limit on a
    GPU. None: no limit. With `steps` it has no effect."""

    max_minutes: float | None = None
    """Time of one training at most: steps are cut to what it allows at the speed of the first ones. None: no limit."""

    batch_size: int = 4
    """Sequences in a forward pass."""

    gradient_accumulation: int = 1
    """Forward passes per optimiser step."""

    sequence_length: int = 128
    """Tokens per sequence."""

    learning_rate: float | Literal["auto"] = "auto"
    """Peak of the cosine schedule; auto tries several on a few steps each, and takes the one after which held-out text
    is predicted best (`qat` and its trials in `tune` only)."""

    rate_test_fraction: float = 0.05
    """Of `learning_rate: auto`: steps of each trial as a share of the training's, from 4 to 32."""

    patience: int = 5
    """Looks at held-out text without an improvement after which training ends; in the first half of the steps, whose
    high rate hides gains, only those count that are far worse than the start. The best state that was seen is kept
    anyway. 0: go on to the end."""

    eval_steps: int | None = None
    """Steps between looks at held-out text, where a training has such; None: up to 20 looks, fewer where they would
    cost over a twentieth of the training."""

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
    model at every step. Without a model to follow it has no effect."""

    save_steps: int | None = None
    """Steps between checkpoints that --resume continues from; None saves four times, but a training of fewer than 20
    steps not at all; 0 never."""

    compile: bool | None = None
    """Translate the model's repeated blocks with torch.compile; None does so where it pays, on a GPU from 200 forward
    passes on."""

    gradient_checkpointing: bool = False
    """Keep only the input of each repeated block for the backward pass and compute the block again there: less memory,
    about a third more time."""

    block_masks: bool = False
    """Let tokens of a packed row see their own document alone; otherwise they see all that comes before them in it."""

    def __post_init__(self) -> None:
        check_types(self, "training")
        self._check_at_least(1, "steps", "batch_size", "gradient_accumulation", "max_tokens", "eval_steps")
        self._check_at_least(2, "sequence_length")
        self._check_at_least(0, "weight_decay", "teacher_top_k", "patience", "save_steps")
        for name in ("learning_rate", "max_grad_norm", "temperature", "epochs", "max_minutes"):
            value = getattr(self, name)
            if value not in (None, "auto") and value <= 0:
                raise UserError(f"training.{name} must be above 0, got {value}")
        for name in ("warmup_fraction", "distillation_weight", "rate_test_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training.{name} must be a share between 0 and 1, got {getattr(self, name)}")

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value not in (None, "auto") and value < least:
                raise UserError(f"training.{name} must be at least {least}, got {value}")

    def for_text(self, rows: int, device: str) -> TrainingSettings:
        """The same settings with the steps that they mean on a text.

        Args:
            rows: sequences that there are.
            device: cpu, cuda or cuda:N.
        """
        if self.steps is not None:
            return self
        drawn = min(self.epochs * rows, self._most_sequences(device))
        return replace(self, steps=max(1, math.ceil(drawn / self.sequences_per_step - 1e-9)))

    def wanted_sequences(self, device: str) -> int:
        """How many different sequences a training could draw; 0 where that is up to the text."""
        if self.steps is not None:
            return self.sequences
        most = self._most_sequences(device)
        return 0 if most == math.inf else math.ceil(most)

    def _most_sequences(self, device: str) -> float:
        limit = (CPU_TOKENS if device == "cpu" else None) if self.max_tokens == "auto" else self.max_tokens
        return math.inf if limit is None else limit / self.sequence_length

    def epochs_over(self, rows: int) -> float:
        """How often the steps go through a text of so many sequences."""
        return self.sequences / rows

    @property
    def parameters(self) -> dict[str, object]:
        """What trainings are compared by, as parameters of an MLflow run."""
        rate = self.learning_rate if self.learning_rate == "auto" else float(f"{self.learning_rate:.4g}")
        return {"steps": self.steps, "learning_rate": rate, "distillation": self.distillation_weight}

    @property
    def known_steps(self) -> int:
        """The steps, which `for_text` has settled."""
        if self.steps is None:
            raise ValueError("steps depend on the text; call for_text first")
        return self.steps

    @property
    def known_rate(self) -> float:
        """The learning rate, which is a number by now.

        Raises:
            UserError: nobody has chosen one.
        """
        if self.learning_rate == "auto":
            raise UserError(
                "training.learning_rate auto is found on held-out text, which only qat and tune of qat set apart; give "
                "a number such as 5e-4 here"
            )
        return self.learning_rate

    @property
    def sequences_per_step(self) -> int:
        """Sequences that one optimiser step sees."""
        return self.batch_size * self.gradient_accumulation

    @property
    def sequences(self) -> int:
        """Sequences that all steps together draw."""
        return self.known_steps * self.sequences_per_step

    @property
    def passes(self) -> int:
        """Forward and backward passes of all steps together."""
        return self.known_steps * self.gradient_accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees."""
        return self.sequences_per_step * self.sequence_length

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints; 0 for none."""
        if self.save_steps is not None:
            return self.save_steps
        return -(-self.known_steps // 4) if self.known_steps >= STEPS_WORTH_SAVING else 0


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685).

    Raises:
        UserError: a value that cannot work; names the setting.
    """

    rank: int = 16
    """Of the update W + (alpha / rank) B A; over a checkpoint's integers, counted in their steps. 0: no adapters: all
    weights of a floating-point model train (at a lower rate, such as 2e-5), of a checkpoint its scales alone."""

    alpha: float = 32.0
    """Its scale."""

    dropout: float = 0.0
    """On the adapters' input."""

    targets: str = "all-linear"
    """`all-linear` (but the head), or comma-separated module names such as q_proj,v_proj. With lm_head or embed_tokens
    of a tied model the merged model is untied."""

    loftq_from: str | None = None
    """Floating-point model, by name, folder or file, whose quantised form is adapted: adapters begin by making good
    what rounding did to it (LoftQ, arXiv 2310.08659). null: they begin without a change."""

    def __post_init__(self) -> None:
        check_types(self, "lora")
        if self.rank < 0:
            raise UserError(f"lora.rank must be 0 (no adapters) or more, such as 8 or 16, got {self.rank}")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha must be above 0, usually twice the rank, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be a share from 0 to below 1, got {self.dropout}")
        if not self.targets.strip():
            raise UserError("lora.targets must be all-linear or module names such as q_proj,v_proj, got nothing")
