"""How many threads a process should compute with, and how they wait for each other. Light."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_1 = Path("/sys/fs/cgroup/cpu")
_SPINS = "GOMP_SPINCOUNT"  # of a thread that waits, before it sleeps; of GNU OpenMP, millions unless it is told
_HARDLY, _BRIEFLY = "100", "10000"
_OURS = ((_SPINS, _HARDLY), (_SPINS, _BRIEFLY))


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
    return _spin(_HARDLY)


def wait_spinning_briefly() -> bool:
    """Let threads spin for a tenth of a millisecond or two before they sleep; otherwise as `wait_without_spinning`.

    As fast as spinning for long while the cores are free, since what follows comes sooner; and where another process
    takes one of them later, threads that sleep leave the other to those that they wait for.
    """
    return _spin(_BRIEFLY)


def as_llama_cpp_comes() -> dict[str, str]:
    """This process's environment without what these two added."""
    return {name: value for name, value in os.environ.items() if (name, value) not in _OURS}


def _spin(count: str) -> bool:
    said = [(name, os.environ[name]) for name in ("OMP_WAIT_POLICY", _SPINS) if name in os.environ]
    if any(each not in _OURS for each in said):
        return False
    os.environ[_SPINS] = count
    return True


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
