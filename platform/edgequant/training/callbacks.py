"""What happens beside the steps of a training: a bar, losses handed on, looks at held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from edgequant.errors import UserError
from edgequant.progress import Progress
from edgequant.training.settings import TrainingSettings
from edgequant.training.watch import Watching

OnStep = Callable[[int, int], None]  # (steps done, steps in all), before a step
OnLog = Callable[[int, dict[str, float]], None]  # (step, metrics)


class Stepping(TrainerCallback):
    """One bar with rate and loss; hands steps and losses on."""

    def __init__(
        self,
        settings: TrainingSettings,
        title: str,
        on_step: OnStep | None,
        on_log: OnLog | None,
        *,
        rows: int,
        keeps_best: bool,
    ) -> None:
        self.settings, self.title, self.before_step, self.after_log = settings, title, on_step, on_log
        self.rows, self.keeps_best, self.ended = rows, keeps_best, ""
        self.losses: list[float] = []
        self.bar: Any = None
        self.started = 0.0
        self.first = 0
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        epochs = self.settings.epochs_over(self.rows)
        if epochs >= 2 and state.is_world_process_zero:
            print(
                f"{self.title}: {state.max_steps} steps go {epochs:.1f} times through {self.rows} sequences; a text "
                "that is seen again and again is learned by heart"
                + (", so held-out text decides which state is kept" if self.keeps_best else ""),
                flush=True,
            )
        layout = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self.bar = Progress(
            state.max_steps, self.title, "step", initial=state.global_step, quiet=not state.is_world_process_zero,
            bar_format=layout, mininterval=1, leave=True,
        )  # fmt: skip
        self.first, self.started = state.global_step, time.perf_counter()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.before_step is not None:
            self.before_step(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.started
        self.bar.update()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.losses.append(float(logs["loss"]))
        if not math.isfinite(self.losses[-1]):
            self._diverged(f"loss {logs['loss']} at step {state.global_step}", control)
            return
        rate = self.tokens_per_second(state.global_step)
        epochs = state.global_step * self.settings.sequences_per_step / self.rows
        self.bar.say(f"epoch {epochs:.2f}, loss {self.losses[-1]:.3f}, {rate:,.0f} tokens/s")
        if self.after_log is not None and state.is_world_process_zero:
            learning_rate = float(logs.get("learning_rate", 0.0))
            values = {
                "train/loss": self.losses[-1],
                "train/tokens_per_second": rate,
                "train/learning_rate": learning_rate,
                "train/epochs": epochs,
            }
            self.after_log(state.global_step, values)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()

    def _diverged(self, how: str, control: TrainerControl) -> None:
        """The end of a training, or of the whole where no better state was kept."""
        if not self.keeps_best:
            raise UserError(f"training diverged: {how}; lower training.learning_rate ({self.settings.learning_rate})")
        self.ended = f"it diverged ({how})"
        control.should_training_stop = True

    def tokens_per_second(self, step: int) -> float:
        return (step - self.first) * self.settings.tokens_per_step / self.seconds if self.seconds else 0.0


class Looking(TrainerCallback):
    """Looks at held-out text before the first step, at intervals and after the last one; ends what no longer gains."""

    def __init__(self, watching: Watching, interval: int, progress: Stepping, on_look: OnLog | None) -> None:
        self.watching, self.interval, self.progress, self.on_look = watching, interval, progress, on_look

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.watching.looks:
            self._look(0)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.interval and state.global_step != state.max_steps:
            return
        self._look(state.global_step)
        patience = self.progress.settings.patience
        if patience and self.watching.looks_without_gain(state.max_steps) >= patience:
            self.progress.ended = f"no better look at held-out text in {patience}"
            control.should_training_stop = True

    def _look(self, step: int) -> None:
        started = time.perf_counter()
        losses = self.watching.look(step).losses
        self.progress.started += time.perf_counter() - started  # of looking, not of training
        if self.on_look is not None:
            self.on_look(step, {f"watched/{name}_loss": loss for name, loss in losses.items()})
