"""One task on two sides, each timed at the fastest of the batch sizes tried."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Side:
    """One side's result on one task: seconds, peak memory, score as text, and what is compared item by item."""

    seconds: float = math.nan
    peak_gb: float = math.nan
    batch: int = 0
    score: str = "-"
    values: Any = None


@dataclass
class Task:
    """One task on both sides. `ours` and `theirs` take (items, batch) and return (score, values)."""

    name: str
    items: int
    trial: int
    unit: str
    ours: Callable[[int, int], tuple[str, Any]]
    theirs: Callable[[int, int], tuple[str, Any]] | None = None
    compare: Callable[[Any, Any], str] = lambda ours, theirs: ""
    sides: dict[str, Side] = field(default_factory=dict)


def fastest(run: Callable[[int, int], tuple[str, Any]], task: Task, tried: tuple[int, ...]) -> Side:
    """Try the batch sizes on a part of the items (the first try also warms up), then run everything at the best."""
    part = min(task.items, task.trial if torch.cuda.is_available() else max(1, task.items // 4))
    seconds = {}
    if len(tried) > 1:
        timed(run, min(part, 32), tried[0])
        for batch in tried:
            try:
                seconds[batch] = timed(run, part, batch).seconds
            except torch.cuda.OutOfMemoryError:
                continue
    best = min(seconds, key=lambda batch: seconds[batch]) if seconds else tried[0]
    return timed(run, task.items, best)


def timed(run: Callable[[int, int], tuple[str, Any]], count: int, batch: int) -> Side:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    score, values = run(count, batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else math.nan
    return Side(seconds, peak, batch, score, values)
