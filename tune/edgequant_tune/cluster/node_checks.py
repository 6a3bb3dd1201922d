"""What every node needs, looked at from every node before the first trial is begun."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgequant.errors import UserError, first_line
from edgequant_tune.cluster import storage

PROBES = ".edgequant-probe"  # folder below the storage, gone when all nodes were asked
NEEDED = ("torch", "transformers", "datasets", "peft")  # of what a trial imports, what is installed and not shipped
SECONDS_TO_ANSWER = 300.0


def check_nodes(place: str, inputs: Sequence[str]) -> None:
    """Ask every node of the running Ray whether it can do a trial.

    Args:
        place: folder or address where trials leave their checkpoints.
        inputs: folders and files that trials read.

    Raises:
        UserError: a node cannot; says which, why, and what to do.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    probes, token = _joined(place, f"{PROBES}-{secrets.token_hex(4)}"), secrets.token_hex(16)
    try:
        storage.write_text(probes, "driver", token)
    except Exception as error:
        raise UserError(f"storage_path {place!r} cannot be written to: {first_line(error)}; name another") from error
    try:
        for node in nodes:
            _check_node(node, probes, token, inputs)
    finally:
        storage.delete_folder(probes)


def _check_node(node: Any, probes: str, token: str, inputs: Sequence[str]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    named = f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
    asked = ray.remote(_fault_of_this_node).options(num_cpus=0, scheduling_strategy=there)
    try:
        fault = ray.get(asked.remote(probes, node["NodeID"], token, inputs), timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # a node whose workers do not start
        raise UserError(f"{named} cannot run a trial: {_last_line(error)}") from error
    if not fault:
        try:
            written = storage.read_text(probes, node["NodeID"])
        except OSError:
            written = ""
        fault = "" if written == token else f"what it writes to {_parent(probes)!r} is not seen here; {SHARE}"
    if fault:
        raise UserError(f"{named} cannot run a trial: {fault}")


SHARE = "use a folder that all nodes mount, or s3://bucket/folder, as storage_path"


def _fault_of_this_node(probes: str, own: str, token: str, inputs: Sequence[str]) -> str:
    """Why this node cannot do a trial, and what to do; empty where it can."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed; install the environment of conda.yaml there"
    missing = [path for path in inputs if not os.path.exists(path)]
    if missing:
        return f"{missing[0]!r} not found there; put it where all nodes have it"
    try:
        if storage.read_text(probes, "driver") != token:
            return f"{_parent(probes)!r} is another folder there; {SHARE}"
        storage.write_text(probes, own, token)
    except OSError as error:
        return f"{_parent(probes)!r} cannot be used there ({first_line(error)}); {SHARE}"
    return ""


def local_inputs(*paths: str | None) -> list[str]:
    """Of what trials read, what is a file or a folder here."""
    return [path for path in paths if path is not None and os.path.isabs(path) and Path(path).exists()]


def _joined(place: str, name: str) -> str:
    return f"{place.rstrip('/')}/{name}"


def _parent(probes: str) -> str:
    return probes.rpartition("/")[0]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
