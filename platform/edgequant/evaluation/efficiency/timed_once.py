"""What several workflows of one process ask about the same unchanged model is timed once. Light.

Timings belong to a moment of a machine, so that they are never kept on disk, and outside `timed_once` not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

SAID = "measured once, earlier in the same pipeline, on the very same bytes"

_known: ContextVar[dict[str, Any] | None] = ContextVar("timings", default=None)


class Timed(NamedTuple):
    """Attributes:
    figures: what was timed.
    earlier: whether that was when it was asked before.
    """

    figures: Any
    earlier: bool


@contextmanager
def timed_once() -> Iterator[None]:
    """Within it `once` remembers; other processes do not see what it does.

    Example:
        with timed_once():
            baseline(model="tiny")
            ptq(model="tiny")  # its baseline is as fast as the one before
    """
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def once(of: Callable[[], Mapping[str, Any]], time: Callable[[], Any]) -> Timed:
    """Time what was not timed yet.

    Args:
        of: everything that decides what is timed and how: a digest of the model, the protocol; asked for within
            `timed_once` alone, since a digest reads all weights.
        time: whose figures are remembered, unless it raises.
    """
    known = _known.get()
    if known is None:
        return Timed(time(), earlier=False)
    key = repr(sorted(of().items()))
    earlier = key in known
    if not earlier:
        known[key] = time()
    return Timed(known[key], earlier)
