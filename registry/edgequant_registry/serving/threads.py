"""How many threads one of the server's processes should compute with."""

from __future__ import annotations

import os
import sys

from edgequant.machine.cores import physical_cores

WORKERS = "--workers"  # uvicorn's option; its worker processes have its arguments as well


def threads_of_a_worker() -> int:
    """The physical cores, shared among the server's processes; no more than $OMP_NUM_THREADS, where it is set."""
    share = max(1, physical_cores() // _workers())
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdigit() and int(limit) else share


def _workers() -> int:
    arguments = sys.argv
    stated = arguments[arguments.index(WORKERS) + 1 :][:1] if WORKERS in arguments else []
    count = stated[0] if stated else os.environ.get("WEB_CONCURRENCY", "1")
    return max(1, int(count)) if count.isdigit() else 1
