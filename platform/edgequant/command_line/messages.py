"""What the parser says of a value, said as a user would: the option, what it takes, the value, how to write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from edgequant.command_line.given import Given
from edgequant.errors import UserError
from edgequant.settings_checks import wrong_type


def readable(error: Exception, given: Given, known: Mapping[str, Any]) -> str:
    """One line for what went wrong in the parser: our own error that it wraps, or a value of another type."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    message = " ".join(str(error).split())
    named = [name for name in re.findall(r'[Pp]arser key "([\w.]+)"', message) if name in known]
    if not named:
        return message
    value = given.value(named[-1])
    return f"{given.place(named[-1])}{wrong_type(named[-1], _meant(value), known[named[-1]])}"


def _meant(value: Any) -> Any:
    """A text of the command line as YAML reads it, so that `nan` and `1.5` are numbers; texts stay as they are."""
    if not isinstance(value, str):
        return value
    try:
        found = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return value
    return found if isinstance(found, list) else value


def one_line(message: str) -> str:
    """A message without line ends, as scripts and logs want it."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip())
