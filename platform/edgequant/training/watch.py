"""Held-out text watched while a model trains: scored before the first step and at intervals, the best state kept.

Early stopping (Prechelt 1998) with the start as one of the states: training never ends worse, on what is watched, than
it began.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgequant.files import atomic_path, write_atomically
from edgequant.training.compilation import is_compiled, scoring
from edgequant.training.distillation import as_read, next_token_loss
from edgequant.training.processes import from_main_process
from edgequant.training.settings import TrainingSettings

SHARE = 0.05  # of a training's time that looking may take
BACKWARD, TEACHER = 2.0, 1.0  # in forward passes
FEWEST_LOOKS, USUAL_LOOKS, MOST_LOOKS = 4, 10, 20  # beside the one before the first step
HOPELESS = 0.1  # nats above the start
FEWEST_TOKENS = 256  # of each text: fewer say nothing
STATE, CURVE = "best.safetensors", "watch.json"

Losses = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is looked at while a model trains, and which state of it is preferred.

    Attributes:
        texts: by name, token rows [n, length] int64; those below 0 are read and not scored (`as_read`).
        limits: by the text's name, losses in nats per token that a state must keep to; one that does comes before one
            that does not, and among equals the lower mean loss over the texts wins.
        as_deployed: called with the model before it is looked at, where it is not trained as it is deployed; the
            training's `on_step` sets things right after it.
        batch_size: rows in a forward pass.
    """

    texts: Mapping[str, Tensor]
    limits: Mapping[str, float] = field(default_factory=dict)
    as_deployed: Callable[[nn.Module], None] | None = None
    batch_size: int = 4

    @property
    def rows(self) -> int:
        """Rows of all texts."""
        return sum(len(rows) for rows in self.texts.values())

    def losses(self, model: Any, *, precision: str = "float32") -> Losses:
        """Mean next-token loss of each text in nats; leaves the model in the mode in which it was.

        Args:
            precision: of the forward pass, as in training: bfloat16 or float32.
        """
        if self.as_deployed is not None:
            self.as_deployed(model)
        with scoring(model, precision):
            return {name: self._loss(model, rows) for name, rows in self.texts.items()}

    def _loss(self, model: Any, rows: Tensor) -> float:
        device, total = next(model.parameters()).device, 0.0
        size = self.batch_size if is_compiled(model) else min(self.batch_size, len(rows))
        for part in rows.split(size):
            filling = torch.arange(size - len(part)) % len(rows)  # compiled code knows one shape
            full = torch.cat([part, rows[filling]])
            logits = model(input_ids=as_read(full.to(device)), use_cache=False).logits[: len(part)].detach()
            total += float(next_token_loss(logits, part.to(device))) * len(part)
        return total / len(rows)

    def rank(self, losses: Mapping[str, float]) -> tuple[bool, float]:
        """Sorts states, the best first: whether a limit is exceeded, then the mean loss."""
        mean = sum(losses.values()) / len(losses)
        exceeded = any(losses[name] > limit for name, limit in self.limits.items() if name in losses)
        return exceeded, mean if math.isfinite(mean) else math.inf

    def interval(self, settings: TrainingSettings, *, taught: bool) -> int:
        """Steps between looks.

        Args:
            taught: whether a teacher runs at every step, which makes a step longer.
        """
        if settings.eval_steps is not None:
            return settings.eval_steps
        looks = int(_affordable(settings, taught=taught) / max(1, self.rows)) - 1  # one before the first step
        return max(1, math.ceil(settings.known_steps / min(MOST_LOOKS, max(FEWEST_LOOKS, looks))))


def _affordable(settings: TrainingSettings, *, taught: bool) -> float:
    """Rows that may be looked at in all, forward passes alone."""
    return SHARE * (1 + BACKWARD + (TEACHER if taught else 0)) * settings.sequences


def rows_to_watch(settings: TrainingSettings, available: int, texts: int, *, taught: bool) -> int:
    """How many of a text's rows each look should take: as many as leave room for a few looks within their share.

    Args:
        available: rows of the text.
        texts: that are watched.
        taught: as `Watch.interval`.
    """
    affordable = int(_affordable(settings, taught=taught) / ((USUAL_LOOKS + 1) * texts))
    least = math.ceil(FEWEST_TOKENS / settings.sequence_length)
    return min(available, max(least, affordable))


class Look(NamedTuple):
    """Held-out losses after so many steps."""

    step: int
    losses: Losses


class Watching:
    """The looks of one training and the best state so far; goes into training checkpoints and comes back from them."""

    def __init__(self, watch: Watch, model: nn.Module, precision: str) -> None:
        self.watch, self.model, self.precision = watch, model, precision
        self.looks: list[Look] = []
        self.best: Look | None = None
        self.state: dict[str, Tensor] = {}

    def look(self, step: int) -> Look:
        """Score the model as it is after so many steps, and keep its state if none was better."""
        look = Look(step, from_main_process(lambda: self.watch.losses(self.model, precision=self.precision)))
        self.looks.append(look)
        if self.best is None or self.watch.rank(look.losses) < self.watch.rank(self.best.losses):
            self.best = look
            self.state = {
                name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _changing(self.model)
            }
        return look

    def looks_without_gain(self, steps: int) -> int:
        """How many looks since the best one count against the training.

        A high rate's noise hides what is gained until it falls: in the first half of the schedule only looks count that
        lie so far above the start that no lower rate wins it back.

        Args:
            steps: of the training in all.
        """
        if self.best is None:
            return 0
        lost = self.watch.rank(self.looks[0].losses)[1] + HOPELESS
        late = [look for look in self.looks if look.step > self.best.step]
        return sum(2 * look.step >= steps or self.watch.rank(look.losses)[1] > lost for look in late)

    def restore_best(self) -> None:
        """Bring the model back to the best state that was seen."""
        restore_state(self.model, self.state)

    def save(self, folder: Path) -> None:
        """Write looks and best state, the looks last: where they are, the state is whole."""
        with atomic_path(folder / STATE) as temporary:
            save_file(self.state, temporary)
        best = None if self.best is None else self.best.step
        write_atomically(folder / CURVE, json.dumps({"looks": self.looks, "best": best}))

    def load(self, folder: Path) -> None:
        """Go on with what `save` wrote."""
        found = json.loads((folder / CURVE).read_text())
        self.looks = [Look(step, losses) for step, losses in found["looks"]]
        self.best = next(look for look in self.looks if look.step == found["best"])
        self.state = load_file(folder / STATE)


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy, in main memory, of what training changes."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _changing(model)}


@torch.no_grad()
def restore_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Bring a model back to a copied state, in place."""
    for name, tensor in _changing(model):
        tensor.copy_(state[name])


def _changing(model: nn.Module) -> Sequence[tuple[str, Tensor]]:
    """What training changes: parameters that are trained, and buffers such as observed ranges."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [*trained, *((name, buffer) for name, buffer in model.named_buffers() if buffer.numel())]
