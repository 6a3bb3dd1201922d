"""What a check found: one line of doctor's table."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One line of the table. `state` is ok, note (something works less well) or missing (nothing works without)."""

    what: str
    state: str
    found: str
    fix: str = ""
