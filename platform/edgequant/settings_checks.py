"""Types of settings: each field holds what its annotation says, and every number is finite. Light: no torch."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgequant.errors import UserError

LARGEST = 2**63 - 1  # what the store and torch take as a whole number
LARGEST_SEED = 2**32 - 1  # numpy's, the smallest of all generators'


def check_types(settings: Any, group: str = "") -> None:
    """Refuse a field that holds another type than it declares, NaN, or an infinite number; lists become tuples.

    Args:
        settings: a dataclass, frozen or not, that is being made; called first in its `__post_init__`.
        group: what its options begin with, such as `training`; none where they stand alone.

    Raises:
        UserError: names the field, what was expected and the value.
    """
    hints = _hints(type(settings))  # type: ignore[arg-type]  # typeshed: a metaclass may not be hashable
    for item in fields(settings):
        value, kind = getattr(settings, item.name), hints[item.name]
        if isinstance(value, list) and any(get_origin(one) is tuple for one in alternatives(kind)):
            value = tuple(value)  # what YAML and the command line give
            object.__setattr__(settings, item.name, value)
        check_type(f"{group}.{item.name}" if group else item.name, value, kind)


def check_type(name: str, value: Any, kind: Any) -> None:
    """Refuse a value of another type.

    Raises:
        UserError: names it, what was expected and the value.
    """
    if not fits(value, kind):
        raise wrong_type(name, value, kind)


def check_seed(seed: int, name: str = "seed") -> None:
    """Refuse a seed that one of the generators cannot take.

    Raises:
        UserError: names it.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{name} must be from 0 to {LARGEST_SEED}, got {seed}; use such as 0, 1 or 2")


def wrong_type(name: str, value: Any, kind: Any) -> UserError:
    """What is said of a value that does not fit."""
    return UserError(f"{name} must be {expected(kind)}, got {shown(value)}{hint(value, kind)}")


@cache
def _hints(settings: type) -> dict[str, Any]:
    return get_type_hints(settings)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """`int | Literal['auto'] | None` to its three parts; any other type to itself."""
    is_one = isinstance(kind, type) or get_origin(kind) in (Literal, tuple, list, dict)
    return (kind,) if is_one or not get_args(kind) else get_args(kind)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as settings declare them: no truth value is a number, no number is NaN."""
    return any(_fits_one(value, one) for one in alternatives(kind))


def _fits_one(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if origin in (tuple, list):
        return isinstance(value, tuple | list) and all(fits(item, get_args(kind)[0]) for item in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and _is_finite(value)
    if kind is int:
        return isinstance(value, int) and abs(value) <= LARGEST
    return isinstance(value, origin or kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more digits than any float
        return False


def expected(kind: Any) -> str:
    """A type in words: `a whole number or null`."""
    words = [_expected_one(one) for one in alternatives(kind)]
    return " or ".join([*words[:-2], " or ".join(words[-2:])])


def _expected_one(kind: Any) -> str:
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        if len(choices) > 3:
            return f"one of {', '.join(choices)}"
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    if get_origin(kind) in (tuple, list):
        inner = get_args(kind)[0]
        return "a list of " + (_expected_one(inner) if get_origin(inner) is Literal else f"{_NAMES[inner]}s")
    return "null" if kind is NoneType else _ARTICLES.get(_NAMES.get(kind, ""), "a mapping")


_NAMES: dict[Any, str] = {int: "whole number", float: "finite number", bool: "truth value", str: "text"}
_ARTICLES = {
    "whole number": "a whole number (int)",
    "finite number": "a finite number",
    "truth value": "true or false",
    "text": "text",
}


def shown(value: Any) -> str:
    """A value for a message: in one line and not endless."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text)} characters)"


def hint(value: Any, kind: Any) -> str:
    """How to write what was probably meant; nothing where that is not clear."""
    kinds = alternatives(kind)
    if isinstance(value, str) and value.strip().lower() in ("none", "null", "~", "") and NoneType in kinds:
        return "; write null"
    listed = next((one for one in kinds if get_origin(one) in (tuple, list)), None)
    if listed is not None and isinstance(value, str | int) and str(value).strip(" ,[]"):
        items = [" ".join(part.split()) for part in str(value).strip("[]() ").split(",") if part.strip()]
        return f"; write [{', '.join(items)}]"
    if bool in kinds:
        return _truth_hint(value)
    return f"; write {_whole(value)}" if int in kinds and _whole(value) is not None else ""


def _truth_hint(value: Any) -> str:
    word = str(value).strip().lower()
    meant = "true" if word in ("1", "y", "t", "1.0") else "false" if word in ("0", "n", "f", "0.0") else None
    return f"; write {meant}" if meant else ""


def _whole(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and number == int(number) and abs(number) < LARGEST else None
