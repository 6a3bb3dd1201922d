"""Ray writes what it is told into its folder, which others may read: no password is among it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from edgequant_tune.cluster import connection

STORE = "postgresql+pg8000://ana:canary-of-the-store@host/db"
SECRETS = {"HF_TOKEN": "canary-of-the-hub", "AWS_SECRET_ACCESS_KEY": "canary-of-the-bucket"}


@pytest.mark.long
def test_workers_know_the_store_and_the_token_and_rays_folder_does_not():
    """In a process of its own: a test before this one may have left Ray running in this one."""
    environment = os.environ | SECRETS | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    ended = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == f"{STORE} {SECRETS['HF_TOKEN']} 0 files with a secret"


@ray.remote
def seen() -> tuple[str | None, str | None]:
    return os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("HF_TOKEN")


def look() -> None:
    """Print what a worker of a new Ray knows, and how many files of Ray's folder hold a secret."""
    environment = connection.worker_environment() | {"MLFLOW_TRACKING_URI": STORE}
    connection.worker_environment = lambda: environment
    with connection.ray_cluster():
        store, token = ray.get(seen.remote())
        folder = Path(ray._private.worker._global_node.get_session_dir_path())
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        print(store, token, sum(b"canary" in path.read_bytes() for path in files), "files with a secret")


if __name__ == "__main__":
    look()
