"""Times of a trial are measured alone on their node: trainings beside it pause between two steps, others wait.

Measuring takes two things: the node's one Ray resource LATENCY_SLOT, so that two trials never measure at once, and the
node's lock, which every trial of a timed search holds while it works and lets go between two steps.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edgequant_tune.cluster.resources import LATENCY_SLOT


class NodeLock:
    """A node's lock, shared by those who work and held alone by the one who measures.

    A measurement that waits goes first: behind `gate`, nobody begins to work anew. Locks end with their process.

    Args:
        folder: of the node, the same for all its processes.
    """

    def __init__(self, folder: Path | None = None) -> None:
        place = folder or Path(tempfile.gettempdir())
        self._gate, self._work = (_opened(place / f"edgequant-{name}-{os.getuid()}.lock") for name in ("gate", "work"))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work; waits while somebody measures."""
        self._begin()
        try:
            yield
        finally:
            fcntl.flock(self._work, fcntl.LOCK_UN)

    def pause_if_wanted(self) -> None:
        """Between two steps: let a measurement through that waits."""
        try:
            fcntl.flock(self._gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        except BlockingIOError:
            fcntl.flock(self._work, fcntl.LOCK_UN)
            self._begin()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Stop to work and be alone; goes on to work behind it."""
        fcntl.flock(self._work, fcntl.LOCK_UN)
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._work, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(self._work, fcntl.LOCK_SH)
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _begin(self) -> None:
        fcntl.flock(self._gate, fcntl.LOCK_SH)
        fcntl.flock(self._work, fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)


def _opened(path: Path) -> IO[bytes]:
    return path.open("ab")


@contextmanager
def quiet_node(threads: int, lock: NodeLock | None = None) -> Iterator[None]:
    """Nothing else of any search runs on this node meanwhile, and this process keeps to `threads` cores."""
    held = lock or NodeLock()
    with _latency_slot(), held.measuring(), pinned(threads):
        yield


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This process, and those that it starts, on the first `threads` cores that it may use; torch on as many."""
    with ExitStack() as undo:
        if hasattr(os, "sched_setaffinity"):
            before = os.sched_getaffinity(0)
            undo.callback(os.sched_setaffinity, 0, before)
            os.sched_setaffinity(0, set(sorted(before)[:threads]))
        if (torch := sys.modules.get("torch")) is not None:
            undo.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        yield


@contextmanager
def _latency_slot() -> Iterator[None]:
    """The node's only one, held by an actor that dies with this process; nothing to hold outside Ray."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        yield
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    slot = ray.remote(_Slot).options(num_cpus=0, resources={LATENCY_SLOT: 1}, scheduling_strategy=here).remote()
    try:
        ray.get(slot.is_held.remote())
        yield
    finally:
        with suppress(Exception):
            ray.kill(slot)


class _Slot:
    def is_held(self) -> bool:
        return True
