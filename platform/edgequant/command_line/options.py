"""The options of an entry point, by name and type, read from its function's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from edgequant.workflows.settings import RunSettings

CONFIG = "config"


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of all options: a parameter, `group.field` of a settings dataclass; run settings have no prefix."""
    found: dict[str, Any] = {CONFIG: str}
    for name, kind in get_type_hints(function).items():
        if name == "return":
            continue
        prefix = "" if kind is RunSettings else f"{name}."
        if kind is not RunSettings:
            found[name] = kind
        if is_dataclass(kind):
            found |= {f"{prefix}{field}": each for field, each in get_type_hints(kind).items()}
    return found


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """What is said of a name that is no option: the nearest one, and all."""
    known = sorted(known)
    near = (
        [key for key in known if key.startswith(name)][:1]
        or get_close_matches(name, known, n=1, cutoff=0.4)
        or [key for key in known if key.endswith(f".{name}")][:1]
    )
    dashes = "--" if what == "option" else ""
    hint = f" Did you mean {dashes}{near[0]}?" if near else ""
    return f"{what} {dashes}{name} is unknown.{hint} There are: {', '.join(known)}"
