"""What a trial asks of a node, and whether any node has it; looked at before a trial is begun."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from edgequant.errors import UserError

Node = Mapping[str, float]  # Ray's names: CPU, GPU, and memory in bytes
LATENCY_SLOT = "edgequant_latency"  # one on every node: who holds it is alone in measuring times there
GB = 1e9


def nodes_of(resources: Node | Sequence[Node]) -> tuple[Node, ...]:
    """The nodes; what is given of one machine is its only node's."""
    return (resources,) if isinstance(resources, Mapping) else tuple(resources)


def check_share(gpus: float) -> None:
    """Refuse one and a half GPUs, for which Ray has no meaning.

    Raises:
        UserError: names the option and its value.
    """
    if gpus > 1 and gpus != int(gpus):
        raise UserError(
            f"gpus_per_trial must be a whole number, or a share below 1, got {gpus:g}; use {int(gpus)} or "
            f"{int(gpus) + 1}"
        )


def granted_gpus(cpus: float, gpus: float, device: str, nodes: Sequence[Node]) -> float:
    """GPUs of a trial on one of the nodes, all of a trial being on one; 0 where there are none or the device is cpu.

    Raises:
        UserError: no node has what a trial asks for; names the option, what was asked, and what the largest one has.
    """
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU")}
    if cpus > most["CPU"]:
        raise UserError(f"cpus_per_trial must be at most the {_there(nodes, 'CPU')}, got {cpus:g}")
    if device == "cuda" and (not most["GPU"] or not gpus):
        raise UserError(f"device cuda with gpus_per_trial {gpus:g} on {most['GPU']:g} GPUs; use auto or cpu")
    if device == "cpu" or not most["GPU"] or not gpus:
        return 0.0
    if gpus > most["GPU"]:
        raise UserError(f"gpus_per_trial must be at most the {_there(nodes, 'GPU')}, got {gpus:g}")
    if not any(node.get("CPU", 0.0) >= cpus and node.get("GPU", 0.0) >= gpus for node in nodes):
        raise UserError(
            f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs of one node, which none of {len(nodes)} has; lower "
            "cpus_per_trial or gpus_per_trial"
        )
    return gpus


def slots_of(nodes: Sequence[Node], asked: Node) -> int:
    """How many trials the nodes hold at a time, each with what it asks of one."""
    needs = {name: amount for name, amount in asked.items() if amount}
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in needs.items()) + 1e-9) for node in nodes)


def asked_memory(bytes_needed: float | None, stated_gb: float | None, nodes: Sequence[Node]) -> float | None:
    """Bytes of memory that a trial asks of its node; None where nothing is known, of the trial or of the nodes.

    Args:
        bytes_needed: as estimated. Where no node has that much, a trial asks for all that the largest one has, and so
            runs alone: an estimate refuses nothing.
        stated_gb: the option `memory_per_trial_gb`, which is kept to.

    Raises:
        UserError: no node has what was stated.
    """
    most = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    if stated_gb is not None and most and stated_gb * GB > most:
        raise UserError(
            f"memory_per_trial_gb must be at most the {most / GB:.1f} GB that Ray gives away on one node, got "
            f"{stated_gb:g}"
        )
    needed = stated_gb * GB if stated_gb is not None else bytes_needed
    if needed is None or not most:
        return None
    if needed > most:
        print(
            f"a trial is estimated to need {needed / GB:.1f} GB, more than the {most / GB:.1f} GB that Ray gives away "
            "on one node: trials run one at a time there; lower training.batch_size, or say memory_per_trial_gb",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return float(int(min(needed, most)))


def check_latency_slots(cpus: float, gpus: float, nodes: Sequence[Node]) -> None:
    """Refuse to time trials where a node cannot be had alone.

    Raises:
        UserError: a node that a trial may run on has no LATENCY_SLOT.
    """
    able = [node for node in nodes if node.get("CPU", 0.0) >= cpus and node.get("GPU", 0.0) >= gpus]
    lacking = sum(node.get(LATENCY_SLOT, 0.0) < 1 for node in able)
    if lacking:
        flag = f"--resources='{{\"{LATENCY_SLOT}\": 1}}'"
        raise UserError(
            f"times of trials are measured alone on their node, by Ray's resource {LATENCY_SLOT}, which {lacking} of "
            f"{len(able)} nodes have not; start these with `ray start {flag}`, or optimise no times"
        )


def local_node() -> Node:
    """This machine, before Ray has looked at it."""
    return {"CPU": float(os.cpu_count() or 1)}


def _there(nodes: Sequence[Node], name: str) -> str:
    most = max((node.get(name, 0.0) for node in nodes), default=0.0)
    if len(nodes) == 1:
        return f"{most:g} {name}s that there are"
    total = sum(node.get(name, 0.0) for node in nodes)
    return f"{most:g} {name}s of one node ({len(nodes)} nodes have {total:g} together)"
