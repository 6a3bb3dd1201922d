"""Hyperparameters that do not go together are found before the search starts, not by the trial that has to fail."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError
from edgequant.quantization.scheme import GRAMMAR, parse_scheme
from edgequant.training.settings import TrainingSettings
from edgequant_tune.space.composed_scheme import UNQUANTIZED, composed
from edgequant_tune.space.hyperparameter import Hyperparameter, Space, configuration
from edgequant_tune.trial_spec import TrialSpec

if TYPE_CHECKING:
    from edgequant.models.sources import ModelSource

MOST_COMBINATIONS = 1000  # that are checked: all of a space of choices, else a sample of its corners
MOST_OF_A_RANGE = 16  # whole numbers that are all looked at; of longer ranges, the ends


def check_combinations(trial: TrialSpec, space: Space, *, quantized: bool) -> ModelSource:
    """Every setting must be possible at the ends of its range and beside every other, every scheme must fit the model.

    Args:
        quantized: whether trials are of a scheme.

    Returns:
        Where the model comes from, which is known by the folder that an MLflow address was fetched to.

    Raises:
        UserError: names the hyperparameters that do not go together.
    """
    from edgequant.workflows.validate import validate

    if not quantized and "learning_rate" not in {item.name for item in space}:
        trial.training.known_rate  # noqa: B018 - refuses `auto`
    if not quantized:
        _check_adapters(trial, space)
    schemes = []
    for counting in _combinations(space):
        if refused := _refusal(trial, counting, quantized):
            raise _named(trial, counting, refused, quantized)
        schemes.append(composed(trial.scheme, counting).get("scheme", counting.get("scheme", trial.scheme)))
    return validate(
        trial.model, trial.dataset, schemes=",".join(dict.fromkeys(schemes)) if quantized else "",
        training=_longest(trial, space), evaluation=trial.evaluation, self_generated=quantized,
    ).source  # fmt: skip


def _check_adapters(trial: TrialSpec, space: Space) -> None:
    """Trials train adapters, and good the rounding of a base only where that is quantised."""
    ranks = next((item.values for item in space if item.name == "rank"), (trial.lora.rank,))
    if (lowest := min(ranks)) < 1:
        raise UserError(f"lora.rank must be at least 1 in tune, whose trials train adapters, got {lowest}")
    if trial.lora.loftq_from is not None and trial.base == "float":
        raise UserError(
            f"lora.loftq_from must be left out in tune over base float, which is not quantised, got "
            f"{trial.lora.loftq_from!r}"
        )


def recipe_values(trial: TrialSpec) -> dict[str, Any]:
    """The settings of a trial without a search, by hyperparameter; the parts of its scheme too, where it has such."""
    groups = (trial.calibration, trial.training, trial.qat, trial.lora)
    given = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    return given | {"scheme": trial.scheme, "base": trial.base} | _parts(trial.scheme)


def _parts(scheme: str) -> dict[str, Any]:
    base, _, _ = scheme.partition("@")
    match = GRAMMAR.fullmatch(base)
    parsed = parse_scheme(scheme) if match else None
    if match is None or parsed is None:
        return {"size_budget": None}
    budget = parsed.budget
    return {
        "weight_bits": int(match["bits"]),
        "group_size": int(match["group"] or 0),
        "activation_bits": 8 if match["a8"] else UNQUANTIZED,
        "embedding_bits": int(match["emb"] or UNQUANTIZED),
        "symmetric": bool(match["sym"]),
        "size_budget": f"{budget.unit}={budget.amount:g}" if budget else None,
    }


# -------------------------------------------------------------------------------------------------------------- inside


def _longest(trial: TrialSpec, space: Space) -> TrainingSettings:
    """Training's settings with the longest sequences that are searched, which the model's context has to hold."""
    lengths = [max(item.values) for item in space if item.name == "sequence_length"]
    return replace(trial.training, sequence_length=lengths[0]) if lengths else trial.training


def _combinations(space: Space) -> Iterator[dict[str, Any]]:
    """What counts of every combination of choices and ends, the same one once; of very many, a sample."""
    corners = {item.name: _corners(item) for item in space}
    total = 1
    for each in corners.values():
        total *= len(each)
    draw = random.Random(0)
    numbers = range(total) if total <= MOST_COMBINATIONS else (draw.randrange(total) for _ in range(MOST_COMBINATIONS))
    seen = set()
    for number in numbers:
        values: dict[str, Any] = {}
        rest = number
        for name, each in corners.items():
            rest, at = divmod(rest, len(each))
            values[name] = each[at]
        counting = configuration(space, values)
        if (key := repr(counting)) not in seen:
            seen.add(key)
            yield counting


def _corners(item: Hyperparameter) -> list[Any]:
    listed = item.listed()
    if listed is not None and (item.kind == "choice" or (item.kind == "integers" and len(listed) <= MOST_OF_A_RANGE)):
        return listed
    return list(item.values)


def _refusal(trial: TrialSpec, values: Mapping[str, Any], quantized: bool) -> str:
    """Why a trial with these hyperparameters could not begin; "" where it can."""
    from edgequant.workflows.validate import check_qat

    try:
        one = trial.with_values({**values, **composed(trial.scheme, values)})
        if quantized:
            check_qat([parse_scheme(one.scheme)], one.training, one.qat, one.calibration)
    except UserError as refused:
        return str(refused)
    return ""


def _named(trial: TrialSpec, counting: Mapping[str, Any], refused: str, quantized: bool) -> UserError:
    """The refusal with the fewest hyperparameters that bring it about."""
    needed = dict(counting)
    for name in counting:
        fewer = {other: value for other, value in needed.items() if other != name}
        if _refusal(trial, fewer, quantized) == refused:
            needed = fewer
    if len(needed) < 2:
        return UserError(refused)
    said = ", ".join(f"{name} {value}" for name, value in needed.items())
    return UserError(f"the search space holds {said}, which do not go together: {refused}; keep them apart with `when`")
