"""Whether the best trial lies at the end of a range, where a wider one may hold a better one."""

from __future__ import annotations

from typing import Any

from edgequant.errors import UserError
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.space.composed_scheme import composed
from edgequant_tune.space.hyperparameter import Hyperparameter
from edgequant_tune.trial_records import TrialRecord

NEAR = 0.05  # of a range from its end


def at_the_ends(spec: SearchSpec, best: TrialRecord) -> list[str]:
    """A line for each hyperparameter of the best trial at an end that could lie further out."""
    lines = []
    for item in spec.space:
        if item.name in best.values and (end := _end(item, best.values[item.name])):
            further = _beyond(item, end)
            if _is_possible(spec, best, item.name, further):
                low, high = min(item.values), max(item.values)
                lines.append(
                    f"{item.name} {best.values[item.name]:.4g} of the best trial is at the {end} end of what was "
                    f"searched, {low:g} to {high:g}: a wider range may hold a better one"
                )
    return lines


def _end(item: Hyperparameter, value: Any) -> str:
    numbers = [one for one in item.values if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) < len(item.values) or (item.kind == "choice" and len(numbers) < 3):
        return ""
    ends = {min(numbers): 0.0, max(numbers): 1.0}
    share = ends.get(value, 0.5) if item.kind == "choice" else item.share(value)
    return "lower" if share < NEAR else "upper" if share > 1 - NEAR else ""


def _beyond(item: Hyperparameter, end: str) -> Any:
    low, high = min(item.values), max(item.values)
    whole = all(isinstance(one, int) for one in item.values)
    step = item.step or (1 if whole else (high - low) / 10)
    if item.kind.startswith("log_") and not whole:
        return low / 2 if end == "lower" else high * 2
    return low - step if end == "lower" else high + step


def _is_possible(spec: SearchSpec, best: TrialRecord, name: str, value: Any) -> bool:
    """A share cannot be more than 1, nor a rank below 0: there is nothing to look for beyond."""
    values = {**best.values, name: value}
    try:
        spec.trial.with_values({**values, **composed(spec.trial.scheme, values)})
    except UserError:
        return False
    return True
