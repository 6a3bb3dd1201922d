"""How long somebody waits for an answer: until the client goes, the time is over, or the server ends."""

from __future__ import annotations

import os
import time
from contextvars import ContextVar

from edgequant_registry.serving.refusal import UnansweredError, client_gone, too_late

TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"  # seconds, which `mlflow models serve --timeout` sets


class Waiting:
    """Asked between the steps of the work, from any thread; whoever finds it over stops.

    Args:
        seconds: from now on; None waits without end.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else (time.monotonic() + seconds, too_late(seconds))

    def end_in(self, seconds: float, why: UnansweredError) -> None:
        """Nobody waits longer than that; an earlier end stays."""
        at = time.monotonic() + seconds
        if self._end is None or at < self._end[0]:
            self._end = at, why

    def leave(self) -> None:
        """The client has gone."""
        self.end_in(0, client_gone())

    def over(self) -> UnansweredError | None:
        """Why nobody waits any more, or None."""
        return self._end[1] if self._end is not None and time.monotonic() >= self._end[0] else None

    def left_s(self) -> float | None:
        """Seconds until it is over, no fewer than 0; None without an end."""
        return None if self._end is None else max(0.0, self._end[0] - time.monotonic())


def seconds_of_a_request() -> float | None:
    """The server's time limit; None outside a server."""
    stated = os.environ.get(TIMEOUT)
    return float(stated) if stated else None


asking: ContextVar[Waiting | None] = ContextVar("asking", default=None)
"""Who waits for what MLflow's server is about to compute; it calls the model in the same context."""
