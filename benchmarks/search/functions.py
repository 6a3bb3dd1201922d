"""The functions: some as trainings behave, some of textbooks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgequant_tune.space.hyperparameter import Hyperparameter, Space
from search.problem import Problem, Result

# -------------------------------------------------------------------------------------------------- as trainings behave

SCHEMES = {  # best logarithm of the learning rate, loss there, size as a share of fp16
    "w2": (-3.0, 2.0, 0.15),
    "w3": (-3.4, 0.7, 0.21),
    "w4": (-3.8, 0.2, 0.28),
    "w8": (-4.5, 0.0, 0.53),
}
STARTS = {"gptq": 0.0, "mse_clip": 0.15, "rtn": 0.4}
RATE = Hyperparameter("learning_rate", "log_uniform", (1e-5, 1e-2))
DISTILLATION = Hyperparameter("distillation_weight", "uniform", (0.0, 1.0))
WARMUP = Hyperparameter("warmup_fraction", "uniform", (0.0, 0.2), 0.05)
TRAINING: Space = (RATE, DISTILLATION, WARMUP)
MIXED: Space = (
    *TRAINING,
    Hyperparameter("scheme", "choice", tuple(SCHEMES)),
    Hyperparameter("init_from", "choice", tuple(STARTS)),
)


def _usual(values: Mapping[str, Any]) -> float:
    return 1.2 * (values["distillation_weight"] - 0.7) ** 2 + 0.8 * (values["warmup_fraction"] - 0.1) ** 2


def training(values: Mapping[str, Any]) -> Result:
    """A bowl around a learning rate of 10^-3.7, and training that diverges from 10^-2.6 on."""
    rate = math.log10(values["learning_rate"])
    return Result((_usual(values) + (rate + 3.7) ** 2 + 50 * max(0.0, rate + 2.6),))


def schemes(values: Mapping[str, Any]) -> Result:
    """Schemes that want different rates, beside PTQ methods: fewer bits, more loss."""
    best, loss, _ = SCHEMES[values["scheme"]]
    away = math.log10(values["learning_rate"]) - best
    return Result((loss + 0.6 * away**2 + _usual(values) + STARTS[values["init_from"]],))


def _size(values: Mapping[str, Any]) -> float:
    return SCHEMES[values["scheme"]][2]


def small_schemes(values: Mapping[str, Any]) -> Result:
    """The same with a bound on the size, which w3 is the best to keep."""
    return Result(schemes(values).costs, (_size(values) / 0.22 - 1,))


def trade_off(values: Mapping[str, Any]) -> Result:
    """Loss against size."""
    return Result((*schemes(values).costs, _size(values) + 0.05 * values["distillation_weight"]))


# ------------------------------------------------------------------------------------------------------- of textbooks


def branin(values: Mapping[str, Any]) -> Result:
    """Three equal minima in a curved valley (Dixon and Szegö 1978)."""
    x, y = 15 * values["x"] - 5, 15 * values["y"]
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return Result((bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10,))


def gardner(values: Mapping[str, Any]) -> Result:
    """A wavy function whose unconstrained minima are forbidden (Gardner et al. 2014, section 4)."""
    x, y = 6 * values["x"], 6 * values["y"]
    cost = math.cos(2 * x) * math.cos(y) + math.sin(x)
    return Result((cost,), (math.cos(x) * math.cos(y) - math.sin(x) * math.sin(y) + 0.5,))


UNIT: Space = tuple(Hyperparameter(name, "uniform", (0.0, 1.0)) for name in "xy")


PROBLEMS = {
    each.name: each
    for each in (
        Problem("training", "one objective", training, TRAINING),
        Problem("branin", "one objective", branin, UNIT, 0.397887),
        Problem("schemes", "choices", schemes, MIXED),
        Problem("small schemes", "constrained", small_schemes, MIXED, 0.7),
        Problem("gardner", "constrained", gardner, UNIT, -1.8884),
        Problem("trade-off", "two objectives", trade_off, MIXED, reference=(3.0, 0.6)),
    )
}
