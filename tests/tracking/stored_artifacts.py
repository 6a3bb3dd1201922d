"""Artifacts as the store has them."""

from __future__ import annotations

from pathlib import Path

import mlflow


def artifact(run_id: str, name: str) -> str:
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)).read_text()


def artifacts(store, run_id: str) -> set[str]:
    return {file.path for file in store.list_artifacts(run_id)}
