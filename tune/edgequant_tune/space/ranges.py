"""Checks of one hyperparameter's range: its numbers, its step, its choices, against the type of its setting."""

from __future__ import annotations

import math
from typing import Any, get_args

from edgequant.errors import UserError

EXAMPLE = "{log_uniform: [1.0e-5, 3.0e-4]}, {integers: [50, 200], step: 50} or {choice: [4, 8]}"


def number(name: str, value: Any, kind: str) -> float:
    """An end of a range; YAML 1.1 reads 1e-5 (no point) as text, and people write it all the same.

    Raises:
        UserError: it is no finite number, or no whole one among integers.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"hyperparameter {name}: {kind} must be finite numbers, got {value!r}; e.g. {EXAMPLE}")
    if kind.endswith("integers"):
        if number != int(number):
            raise UserError(f"hyperparameter {name}: {kind} must be whole numbers, got {value!r}")
        return int(number)
    return number


def check_range(name: str, kind: str, values: tuple[Any, ...], step: Any, declared: Any) -> None:
    """Refuse a range that is none, or that the setting cannot take.

    Args:
        declared: type of the setting.

    Raises:
        UserError: names the hyperparameter, what was given and what would do.
    """
    if kind == "choice":
        return _check_choices(name, values, declared)
    if len(values) != 2 or not values[0] < values[1]:
        raise UserError(f"hyperparameter {name}: {kind} must be [low, high] with low < high, got {list(values)}")
    if kind.startswith("log_") and values[0] <= 0:
        raise UserError(f"hyperparameter {name}: {kind} must begin above 0, got {values[0]}")
    if float not in _members(declared) and int in _members(declared) and not kind.endswith("integers"):
        raise UserError(f"hyperparameter {name} is a whole number and must be integers: [low, high], got {kind}")
    if not _is_number(declared):
        raise UserError(f"hyperparameter {name} is not a number and must be choice: [...], got {kind}")
    if step is not None:
        _check_step(name, kind, values, step)


def _check_step(name: str, kind: str, values: tuple[Any, ...], step: Any) -> None:
    is_number = isinstance(step, int | float) and not isinstance(step, bool) and math.isfinite(step)
    if not is_number or step <= 0 or kind.startswith("log_"):
        raise UserError(
            f"hyperparameter {name}: step must be above 0, for uniform and integers, got {step!r} for {kind}"
        )
    if kind == "integers" and step != int(step):
        raise UserError(f"hyperparameter {name}: step of integers must be a whole number, got {step!r}")
    if step > values[1] - values[0]:
        raise UserError(
            f"hyperparameter {name}: step must be at most {values[1] - values[0]:g}, from {values[0]:g} to "
            f"{values[1]:g}, got {step!r}"
        )


def _check_choices(name: str, values: tuple[Any, ...], declared: Any) -> None:
    if len(set(map(repr, values))) != len(values):
        raise UserError(f"hyperparameter {name}: choice must name different values, got {list(values)}")
    wrong = [value for value in values if not _fits(value, declared)]
    if wrong:
        raise UserError(f"hyperparameter {name}: choice must be of {_type_name(declared)}, got {wrong[0]!r}")


def _fits(value: Any, declared: Any) -> bool:
    members = _members(declared)
    kinds = [member for member in members if isinstance(member, type)]
    if isinstance(value, bool):
        return bool in kinds
    whole_as_float = isinstance(value, int) and float in kinds
    return any(isinstance(value, kind) for kind in kinds) or whole_as_float or value in members


def _is_number(declared: Any) -> bool:
    return int in _members(declared) or float in _members(declared)


def _members(declared: Any) -> tuple[Any, ...]:
    """`int | None` to (int, NoneType); `Literal['a', 'b']` to the values, also in a union; a plain type to itself."""
    members = get_args(declared)
    if not members:
        return (declared,)
    return tuple(part for member in members for part in (_members(member) if get_args(member) else (member,)))


def _type_name(declared: Any) -> str:
    return " or ".join(getattr(member, "__name__", repr(member)) for member in _members(declared))
