"""Freed memory is kept for the next tensor, instead of given back to the system at once. Light.

glibc returns freed blocks of some MB and asks for them again at the next tensor of that size; the system then clears
each page, which of a quantised layer's input takes ten times as long as rounding it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

KEPT = 512 << 20  # bytes at most
SYSTEM_FROM = 32 << 20  # bytes from which a block is the system's own; glibc's largest
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
GIVEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # environment: somebody else's choice


def keep_freed() -> None:
    """Keep up to `KEPT` bytes, unless the environment says how; where the C library is not glibc, nothing changes."""
    if any(name in os.environ for name in GIVEN):
        return
    with contextlib.suppress(Exception):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, SYSTEM_FROM)
        library.mallopt(_TRIM_THRESHOLD, KEPT)
