"""Which Ray a search runs on."""

from __future__ import annotations

import os

from edgequant.errors import UserError


def running_cluster(address: str | None) -> str | None:
    """The address of a Ray that runs already, as the option or $RAY_ADDRESS names it; None: start one here.

    Raises:
        UserError: an address of Ray's client, through which no search can run.
    """
    named = address or os.environ.get("RAY_ADDRESS") or None
    if named is not None and named.startswith("ray://"):
        raise UserError(
            f"address must be that of Ray's head node, HOST:6379, or auto, got {named!r}, a client's; run edgequant on "
            "a machine of the cluster"
        )
    return None if named == "local" else named
