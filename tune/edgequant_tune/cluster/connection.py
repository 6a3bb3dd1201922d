"""Ray, started here or joined where it runs."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from edgequant import tracking
from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError, first_line
from edgequant.ray_signals import sigterm_kept
from edgequant_tune.cluster.addresses import running_cluster
from edgequant_tune.cluster.resources import LATENCY_SLOT, Node

PACKAGES = ("edgequant", "edgequant_tune")
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "HF_ENDPOINT", "HF_HUB_OFFLINE")


def worker_environment(*, elsewhere: bool = False) -> dict[str, str]:
    """What Ray's workers need: the store by its absolute address and, on this machine alone, where the packages lie.

    Args:
        elsewhere: workers are on other machines too, to which the packages are shipped.
    """
    values = {
        "MLFLOW_TRACKING_URI": absolute_store(tracking.client().tracking_uri),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if elsewhere:  # keys are not among them: every node has its own
        return values | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    paths = [*(str(folder.parent) for folder in _packages()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    absolute = (os.path.abspath(path) for path in paths if path)
    return values | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(absolute))}


def _packages() -> list[Path]:
    return [Path(importlib.import_module(name).__path__[0]) for name in PACKAGES]


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[tuple[Node, ...]]:
    """Ray, yielding what each of its nodes has: the cluster that the address names, else one of this machine's own.

    Args:
        address: of a cluster's head node, HOST:6379, or auto; None: what $RAY_ADDRESS names. The project's packages are
            shipped to its nodes, which need what is installed beside them.

    Raises:
        UserError: there is no Ray at the address.
    """
    if ray.is_initialized():
        yield node_resources()
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are shown in the table
    with _own() if (cluster := running_cluster(address)) is None else _joined(cluster) as arguments:
        with sigterm_kept():
            _start(log_to_driver=False, logging_level=logging.ERROR, **arguments)
        try:
            yield node_resources()
        finally:
            ray.shutdown()


def _start(**arguments: Any) -> None:
    try:
        ray.init(**arguments)
    except ConnectionError as error:
        raise UserError(
            f"address {arguments.get('address')!r}: no Ray answers there ({first_line(error)}); start it with `ray "
            "start --head`, or leave address and $RAY_ADDRESS out"
        ) from error


@contextmanager
def _own() -> Iterator[dict[str, Any]]:
    environment = worker_environment()
    told = without_passwords(environment)
    kept = {name: value for name, value in environment.items() if name not in told}
    with _short_folder() as folder, inherited(kept):
        yield {
            "address": "local",
            "runtime_env": {"env_vars": told},
            "include_dashboard": False,
            "_temp_dir": folder,
            "resources": {LATENCY_SLOT: 1},
        }


@contextmanager
def _joined(address: str) -> Iterator[dict[str, Any]]:
    code = {"py_modules": [str(folder) for folder in _packages()], "excludes": ["__pycache__"]}
    yield {
        "address": address,
        "runtime_env": code | {"env_vars": without_passwords(worker_environment(elsewhere=True))},
    }


def without_passwords(environment: Mapping[str, str]) -> dict[str, str]:
    """What Ray may be told, which writes it into its logs: a store's address with a password is not among it."""
    return {name: value for name, value in environment.items() if tracking.without_password(value) == value}


@contextmanager
def inherited(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, this process has these in its environment, and what it starts inherits them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def node_resources() -> tuple[Node, ...]:
    """What each living node has."""
    return tuple(node["Resources"] for node in ray.nodes() if node["Alive"])


@contextmanager
def _short_folder() -> Iterator[str]:
    """For Ray's Unix sockets, whose paths have at most 107 characters: under /tmp, whatever $TMPDIR says."""
    with Scratch("/tmp" if os.access("/tmp", os.W_OK) else None) as folder:
        yield folder


def absolute_store(uri: str) -> str:
    """A sqlite store named relative to the working directory, by its absolute path; any other as it is."""
    scheme, slashes, path = uri.partition(":///")
    if scheme == "sqlite" and slashes and not path.startswith("/"):
        return f"sqlite:////{str(Path(path).resolve()).lstrip('/')}"
    return uri
