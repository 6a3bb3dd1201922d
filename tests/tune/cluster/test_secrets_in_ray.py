"""Ray writes what it is told into its folder, which others may read: no password is among it."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from edgequant_tune.cluster import connection

STORE = "postgresql+pg8000://ana:canary-of-the-store@host/db"


@ray.remote
def seen() -> tuple[str | None, str | None]:
    import os

    return os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("HF_TOKEN")


@pytest.mark.long
def test_workers_know_the_store_and_the_token_and_rays_folder_does_not(monkeypatch):
    environment = connection.worker_environment() | {"MLFLOW_TRACKING_URI": STORE}
    monkeypatch.setattr(connection, "worker_environment", lambda: environment)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HF_TOKEN", "canary-of-the-hub")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-the-bucket")
    with connection.ray_cluster():
        assert ray.get(seen.remote()) == (STORE, "canary-of-the-hub")
        folder = Path(ray._private.worker._global_node.get_session_dir_path())
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files and [path for path in files if b"canary" in path.read_bytes()] == []
