"""The command that makes a run again: the settings in which it differs from the defaults, quoted for a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from edgequant import tracking
from edgequant.commands import runnable
from edgequant.errors import UserError

WITHOUT_EFFECT = ("resume",)  # on what a run comes to


class Command(NamedTuple):
    """Attributes:
    text: ready to be pasted; empty where it is not known.
    note: what it leaves out, or why it is not known.
    """

    text: str
    note: str = ""


def command(workflow: str, run_id: str, defaults: Mapping[str, Any] | None) -> Command:
    """The command of a run.

    Args:
        workflow: its entry point.
        run_id: its config.yaml is read.
        defaults: the entry point's, in groups or flat; None: not known, so that every setting is told.
    """
    config = _configuration(run_id)
    if not workflow or config is None:
        return Command("", "its configuration was not kept")
    given = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}
    known = None if defaults is None else _plain(defaults)
    if known is None:
        return Command(written(workflow, {name: value for name, value in given.items() if value is not None}))
    gone = [name for name in given if name not in known and not _is_part(name, known)]
    changed = {name: value for name, value in given.items() if name not in gone and known.get(name) != value}
    note = f"without settings that this version does not have: {', '.join(gone)}" if gone else ""
    return Command(written(workflow, changed), note)


def written(workflow: str, settings: Mapping[str, Any]) -> str:
    """`edgequant qat --model tiny --training.steps 4`, so that it runs in the user's shell."""
    options = [
        _option(name, value if isinstance(value, str) else json.dumps(value)) for name, value in settings.items()
    ]
    return runnable(" ".join(["edgequant", workflow, *options]))


def _configuration(run_id: str) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(tracking.download(f"runs:/{run_id}/config.yaml").read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError, yaml.YAMLError):
        return None
    return tracking.flatten(found) if isinstance(found, dict) else None


def _plain(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """As they would be read from config.yaml."""
    return tracking.flatten(json.loads(json.dumps(defaults, default=str)))


def _is_part(name: str, known: Mapping[str, Any]) -> bool:
    """Whether a setting is a key of a mapping that one option takes whole."""
    return any(name.startswith(f"{option}.") for option in known)


def _option(name: str, text: str) -> str:
    """With an equals sign where the value would be taken for an option."""
    return f"--{name}{'=' if text.startswith('-') else ' '}{shlex.quote(text)}"
