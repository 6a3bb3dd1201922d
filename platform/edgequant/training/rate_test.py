"""`learning_rate: auto`: a few short trainings from the same start, judged by held-out text.

A range test in the sense of Smith 2017 (arXiv 1506.01186), with a training of its own for each rate, annealed to 0 as
the long one will be, instead of one whose rate rises. Rates are tried relative to the size of the weights, since Adam
moves every weight by about its rate in each step, however large the weights of a model are.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgequant.disk.leftovers import Scratch
from edgequant.files import read_json, write_atomically
from edgequant.models.devices import pick_dtype
from edgequant.training.compilation import should_compile
from edgequant.training.loop import train
from edgequant.training.settings import TrainingSettings
from edgequant.training.trainer import Anchor
from edgequant.training.watch import Losses, Watch, copied_state, restore_state

FIRST = 1e-3  # of the weights' root mean square: a step of Adam in fine-tuning
FACTOR = math.sqrt(10)  # between rates tried: the best of a training lies within half of it of one
LOWEST, HIGHEST = 1e-5, 1e-1  # as FIRST
TOLERANCE = 3e-3  # nats: what a trial of FEWEST_STEPS may lose and a longer training wins back; longer ones less
FEWEST_STEPS, MOST_STEPS = 4, 32  # of a trial
STEPS_FOR_TEST = 40  # a shorter training takes FIRST: trials would cost as much as the training
GROUPS = {"scales": 3.0, "norms": 3.0}  # factors that a group's rate is tried at, up and down
SCALES = 0.2  # of what `learning_rate_factor` says for a quantiser's parameter: weights of size 0.2 keep it
ALONE = 0.2  # where scales and norms train alone, of the rate at which they do beside weights
SPREAD = 10.0  # matrices' rates lie within this factor of the typical one's
STEPS_FOR_GROUPS = 200  # shorter trainings leave the groups' rates as they are


@dataclass
class RateTest:
    """What was tried and found.

    Attributes:
        rate: peak learning rate of weights; 0 where one was given and only the speed was measured.
        factors: by kind of parameter, its rate as a multiple of that.
        rows: a row per trial: `learning_rate`, factors, held-out losses and their rank.
        seconds_per_step: of the last trial; 0 where there was none.
    """

    rate: float = 0.0
    factors: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds_per_step: float = 0.0

    def applied_to(self, settings: TrainingSettings) -> TrainingSettings:
        """The settings with the rate that was found, and with as many steps as `max_minutes` allows."""
        if settings.max_minutes is not None and self.seconds_per_step:
            affordable = max(1, int(60 * settings.max_minutes / self.seconds_per_step))
            settings = replace(settings, steps=min(settings.known_steps, affordable))
        return replace(settings, learning_rate=self.rate) if settings.learning_rate == "auto" else settings

    def rates(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the model's parameters train at the rates that were found; at the given one where none was sought."""
        return relative_rates(model, self.factors) if self.rate else nullcontext()


def find_learning_rate(
    model: nn.Module,
    tokens: Tensor,
    settings: TrainingSettings,
    watch: Watch,
    *,
    teacher: nn.Module | None = None,
    anchor: Anchor | None = None,
    seed: int = 0,
    title: str = "training",
    document_end: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> RateTest:
    """Find the peak learning rate of a training that starts from the model as it is; the model is left so.

    The highest rate is sought that does no harm in a few steps: after which held-out text is predicted as well as
    before, within TOLERANCE x (FEWEST_STEPS / steps)^(1/2), and as after any other rate, within TOLERANCE. (The rate
    that is best after a few steps is too low for many: from the integers that a good PTQ method chose, few steps win
    little. The more steps a trial has, the less its gain may fall short of what its rate costs in noise.) Then, in
    trainings of some length, the rates of quantisation scales and of norms relative to it are tried. Every trial sees
    the same sequences. A training of fewer than STEPS_FOR_TEST steps takes FIRST untried; one of scales and norms alone
    ALONE of it.

    Args:
        model, tokens, settings, teacher, anchor, seed, document_end, on_step: as `train`.
        watch: held-out text; its limits do not count here.
        title: of the progress bars.
    """
    return _Trials(model, tokens, settings, watch, teacher, anchor, seed, title, document_end, on_step).run()


def kept_rate_test(file: Path, run: Callable[[], RateTest], *, resume: bool) -> RateTest:
    """The result that an interrupted run left in a file, where it is to be resumed, or a new one, left there."""
    if resume and (kept := read_json(file)) is not None:
        return RateTest(**kept)
    found = run()
    write_atomically(file, json.dumps(asdict(found)))
    return found


class _Trials:
    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        settings: TrainingSettings,
        watch: Watch,
        teacher: nn.Module | None,
        anchor: Anchor | None,
        seed: int,
        title: str,
        document_end: int | None,
        on_step: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.tokens, self.settings = model, tokens, settings
        self.watch = replace(watch, limits={})
        self.teacher, self.anchor, self.seed, self.title, self.on_step = teacher, anchor, seed, title, on_step
        self.document_end = document_end
        wanted = max(FEWEST_STEPS, round(settings.rate_test_fraction * settings.known_steps))
        self.steps = min(settings.known_steps, wanted, MOST_STEPS)
        device = next(model.parameters()).device
        compiled = should_compile(device, settings.passes) if settings.compile is None else settings.compile
        self.short = replace(
            settings, steps=self.steps, save_steps=0, patience=0, eval_steps=self.steps, compile=compiled
        )
        self.size, self.precision = typical_weight(model), pick_dtype(settings.precision, str(device))
        self.start = copied_state(model)
        self.found = RateTest()

    def run(self) -> RateTest:
        if self.settings.learning_rate != "auto":
            self._losses_after(self.settings.known_rate)
            return self.found
        if self.settings.known_steps < STEPS_FOR_TEST:
            self.found.rate = FIRST * (self.size if _trains_weights(self.model) else ALONE)
            if self.settings.max_minutes is not None:
                self._losses_after(self.found.rate)
            return self.found
        rate = self._highest_harmless_rate()
        if self.settings.known_steps >= STEPS_FOR_GROUPS:
            self._best_factors(rate)
        self.found.rate = rate * self.size
        return self.found

    def _highest_harmless_rate(self) -> float:
        """The highest rate, relative to the weights' size, after which held-out text is predicted as well as by any."""
        allowed = self.watch.rank(self.watch.losses(self.model, precision=self.precision))[1]
        allowed += TOLERANCE * math.sqrt(FEWEST_STEPS / self.steps)
        rate, tried = FIRST, {FIRST: self._score(FIRST)}

        def harmless(rate: float) -> bool:
            return tried[rate] <= min(allowed, min(tried.values()) + TOLERANCE)

        up = harmless(FIRST)
        while LOWEST < rate < HIGHEST and harmless(rate) == up:
            rate = rate * FACTOR if up else rate / FACTOR
            tried[rate] = self._score(rate)
        return max((rate for rate in tried if harmless(rate)), default=min(tried, key=lambda rate: tried[rate]))

    def _best_factors(self, rate: float) -> None:
        present = {group_of(parameter) for parameter in self.model.parameters() if parameter.requires_grad}
        for group in (group for group in GROUPS if group in present):
            reference = self._score(rate)
            for factor in (GROUPS[group], 1 / GROUPS[group]):
                self.found.factors[group] = factor
                if self._score(rate) < reference:
                    break
                self.found.factors.pop(group)

    def _score(self, rate: float) -> float:
        """Mean held-out loss after a short training at this rate; infinite where it diverges."""
        with relative_rates(self.model, self.found.factors):
            return self._note(rate, self._losses_after(rate * self.size))

    def _losses_after(self, rate: float) -> Losses:
        """Held-out losses after a short training; none where it diverges. The model is as it was before."""
        scratch = Scratch()
        folder = Path(scratch.name)
        started = time.perf_counter()
        try:
            result = train(
                self.model, self.tokens, replace(self.short, learning_rate=rate), folder, teacher=self.teacher,
                anchor=self.anchor, watch=self.watch, seed=self.seed, on_step=self.on_step,
                title=f"{self.title}, trying rate {rate:.1e}", document_end=self.document_end,
            )  # fmt: skip
        finally:
            scratch.cleanup()
            restore_state(self.model, self.start)
        self.found.seconds_per_step = (time.perf_counter() - started) / self.steps
        return {} if result.ended else result.looks[-1].losses

    def _note(self, rate: float, losses: Losses) -> float:
        mean = self.watch.rank(losses)[1] if losses else math.inf
        row = {"learning_rate": rate * self.size, "steps": self.steps, "mean_loss": mean}
        self.found.rows.append(row | {f"{group}_factor": value for group, value in self.found.factors.items()} | losses)
        return mean


def _trains_weights(model: nn.Module) -> bool:
    return any(parameter.requires_grad and group_of(parameter) == "weights" for parameter in model.parameters())


def typical_weight(model: nn.Module) -> float:
    """Median over the trained matrices of the root mean square of their elements; 1 where there is none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = [_size(parameter) for parameter in trained if group_of(parameter) == "weights"]
    return float(torch.tensor(sizes).median()) or 1.0 if sizes else 1.0


def group_of(parameter: nn.Parameter) -> str:
    """`scales` for what a weight quantiser learns, `norms` for vectors (norms and biases), `weights` for the rest."""
    if getattr(parameter, "is_scale", False):
        return "scales"
    return "weights" if parameter.ndim > 1 else "norms"


@contextmanager
def relative_rates(model: nn.Module, factors: Mapping[str, float]) -> Iterator[None]:
    """Inside, each parameter's rate is relative to its size, as in Adafactor (Shazeer and Stern 2018, section 8).

    A learning rate is then that of a matrix of typical size. Scales, which the optimiser sees relative to their start,
    move SCALES times as fast as weights do relative to theirs.

    Args:
        factors: by `group_of`, multiples of these rates.
    """
    typical, trained = typical_weight(model), [one for one in model.parameters() if one.requires_grad]
    before = [getattr(parameter, "learning_rate_factor", None) for parameter in trained]
    made = [_relative(parameter, typical) * factors.get(group_of(parameter), 1.0) for parameter in trained]
    for parameter, factor in zip(trained, made, strict=True):
        parameter.learning_rate_factor = factor  # type: ignore[attr-defined]  # read by the training loop
    try:
        yield
    finally:
        for parameter, old in zip(trained, before, strict=True):
            if old is None:
                del parameter.learning_rate_factor  # type: ignore[attr-defined]
            else:
                parameter.learning_rate_factor = old  # type: ignore[attr-defined]


def _relative(parameter: nn.Parameter, typical: float) -> float:
    """A parameter's rate as a multiple; in steps of sqrt(2), so that the optimiser has few groups."""
    return 2.0 ** (round(2 * math.log2(_exactly_relative(parameter, typical))) / 2)


def _exactly_relative(parameter: nn.Parameter, typical: float) -> float:
    group = group_of(parameter)
    if group == "scales":
        return float(getattr(parameter, "learning_rate_factor", 1.0)) * SCALES / typical
    share = _size(parameter) / typical
    # A vector of zeros, as biases often are at first, will be of the size of a weight.
    return max(share, 1.0) if group == "norms" else min(max(share, 1 / SPREAD), SPREAD)


def _size(parameter: nn.Parameter) -> float:
    return float(parameter.detach().float().square().mean().sqrt())
