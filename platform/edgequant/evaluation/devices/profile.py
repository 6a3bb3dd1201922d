"""What a device grants a model: threads, memory, disk; read by name or from a YAML file. Light: no torch, no numpy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from edgequant.errors import UserError
from edgequant.settings_checks import check_type
from edgequant.yaml_files import parse_yaml, read_yaml

OPTION = "device_profile"
MOST_THREADS = 4096
_LINE = "threads: 4"
_REQUIRED = ("threads", "memory_gb", "disk_gb")
_BUNDLED = files("edgequant.evaluation.devices") / "profiles"


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """A device, as far as it is emulated: neither its instruction set nor its memory bandwidth are.

    GB are 10^9 bytes.
    """

    name: str
    """How it is called in tables and tags."""

    threads: int
    """CPU threads that the runtime computes with."""

    memory_gb: float
    """Most resident memory of the runtime's process, the model's file included: what the system leaves of the whole."""

    disk_gb: float
    """Most that the shipped file or folder may take."""

    max_time_to_first_token_ms: float | None = None
    """Longest time to the first token behind the measured prompt; none: it is told, and breaks nothing."""

    min_tokens_per_second: float | None = None
    """Least tokens decoded per second, by their median; none: it is told, and breaks nothing."""

    description: str = ""
    """For the reader."""


def bundled_profiles() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _BUNDLED.iterdir() if item.name.endswith(".yaml"))


def read_profile(source: str) -> DeviceProfile:
    """Read and check a device profile.

    Args:
        source: the name of a bundled one, or a YAML file.

    Raises:
        UserError: neither, no YAML, or a key or value that cannot be meant; names it and the fix.

    Example:
        read_profile("raspberry-pi-5").threads
    """
    if source in (known := bundled_profiles()):
        text = (_BUNDLED / f"{source}.yaml").read_text(encoding="utf-8")
        return _checked(parse_yaml(text, f"{OPTION} {source!r}", _LINE), source)
    if not source.strip() or not os.path.lexists(os.path.expanduser(source)):
        near = get_close_matches(source, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{OPTION} {source!r} not found; {hint}give one of {', '.join(known)}, or a YAML file")
    return _checked(read_yaml(source, OPTION, _LINE), source)


def _checked(found: Mapping[str, Any], source: str) -> DeviceProfile:
    known = [item.name for item in fields(DeviceProfile)]
    for key in found:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{OPTION} {source!r}: key {key!r} is unknown; {hint}keys are {', '.join(known)}")
    if missing := [key for key in _REQUIRED if found.get(key) is None]:
        raise UserError(f"{OPTION} {source!r} must have {', '.join(_REQUIRED)}, {missing[0]} is missing; add it")
    hints = get_type_hints(DeviceProfile)
    for key, value in found.items():
        check_type(f"{OPTION} {source!r}: {key}", value, hints[key])
        _check_range(source, key, value)
    return DeviceProfile(**{"name": Path(source).stem, **found})


def _check_range(source: str, key: str, value: Any) -> None:
    if key in ("name", "description"):
        if key == "name" and (not value.strip() or len(value) > 100 or not value.isprintable()):
            raise UserError(f"{OPTION} {source!r}: name must be one line of 1 to 100 characters, got {value[:40]!r}")
        return
    if value is not None and value <= 0:
        raise UserError(f"{OPTION} {source!r}: {key} must be above 0, got {value}; leave out a limit that is none")
    if key == "threads" and value > MOST_THREADS:
        raise UserError(f"{OPTION} {source!r}: threads must be at most {MOST_THREADS}, got {value}")
