"""`when`: a hyperparameter that counts only beside certain values of others."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgequant.errors import UserError

SIGNS = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_EXAMPLE = 'when: {lora_rank: ">0"} or when: {init_from: [gptq, awq]}'


@dataclass(frozen=True)
class Condition:
    """What another hyperparameter has to be: beyond a number, or one of some values."""

    other: str
    sign: str
    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether the other hyperparameter's value keeps it."""
        if self.sign in ("in", "=="):
            return value in self.values
        if self.sign == "!=":
            return value not in self.values
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and bool(SIGNS[self.sign](value, self.values[0]))


def read_conditions(name: str, when: Any) -> tuple[Condition, ...]:
    """The conditions of one hyperparameter, as they are written.

    Raises:
        UserError: they are no mapping of names to values, lists of values or comparisons with a number.
    """
    if when is None:
        return ()
    if not isinstance(when, Mapping) or not when:
        raise UserError(f"hyperparameter {name}: when must be a mapping, got {when!r}; e.g. {_EXAMPLE}")
    return tuple(_condition(name, str(other), wanted) for other, wanted in when.items())


def _condition(name: str, other: str, wanted: Any) -> Condition:
    if isinstance(wanted, list):
        if not wanted:
            raise UserError(f"hyperparameter {name}: when {other} must name values, got []; e.g. {_EXAMPLE}")
        return Condition(other, "in", tuple(wanted))
    found = re.fullmatch(r"\s*(>=|<=|!=|==|>|<)\s*(\S.*?)\s*", wanted) if isinstance(wanted, str) else None
    if found is None:
        if isinstance(wanted, Mapping):
            raise UserError(f"hyperparameter {name}: when {other} must be a value, got {wanted!r}; e.g. {_EXAMPLE}")
        return Condition(other, "in", (wanted,))
    try:
        return Condition(other, found[1], (float(found[2]),))
    except ValueError:
        if found[1] in ("==", "!="):
            return Condition(other, found[1], (found[2],))
    raise UserError(f"hyperparameter {name}: when {other} must compare with a number, got {wanted!r}; e.g. {_EXAMPLE}")
