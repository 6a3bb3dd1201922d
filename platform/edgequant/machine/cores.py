"""How many threads a process should compute with, and how they wait for each other. Light."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_1 = Path("/sys/fs/cgroup/cpu")
_OF_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_HARDLY_SPINNING = {"GOMP_SPINCOUNT": "100"}


def physical_cores() -> int:
    """Physical cores that this process may use: of two threads on a core one, and no more than its cgroup's share."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_core(cpu) for cpu in allowed}
    return max(1, int(min(len(cores), _share())))


def wait_without_spinning() -> bool:
    """Let threads sleep where they wait for each other, unless the environment says how they wait; returns whether.

    Where other processes want the cores too, spinning threads take ten times as long. OpenMP reads it when it is
    loaded, with torch: it has to be called before. Timed processes are without it, see `as_llama_cpp_comes`.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    os.environ.update(_HARDLY_SPINNING)
    return True


def as_llama_cpp_comes() -> dict[str, str]:
    """This process's environment without what `wait_without_spinning` added."""
    return {name: value for name, value in os.environ.items() if _HARDLY_SPINNING.get(name) != value}


def _core(cpu: int) -> tuple[str, ...]:
    topology = _CPUS / f"cpu{cpu}" / "topology"
    try:
        return tuple((topology / name).read_text().strip() for name in ("physical_package_id", "core_id"))
    except OSError:
        return (str(cpu),)


def _share() -> float:
    """CPUs' time that the process's cgroup grants it."""
    try:
        quota, period = _CGROUP_2.read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((_CGROUP_1 / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    return math.inf if quota.strip() in ("max", "-1") else int(quota) / int(period)
