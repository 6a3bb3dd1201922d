"""Machine, package versions and commit, as a run records them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import psutil

PACKAGES = (
    "torch",
    "transformers",
    "mlflow",
    "ray",
    "peft",
    "bitsandbytes",
    "datasets",
    "optuna",
    "numpy",
    "edgequant",
)


def log_environment() -> None:
    """Machine and package versions: environment.json."""
    mlflow.log_text(json.dumps(environment(), indent=2), "environment.json")


def environment() -> dict[str, Any]:
    """Machine and package versions as they are now; the GPU is named only if torch is loaded already."""
    import sys

    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "torch_threads": torch.get_num_threads() if torch else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else [],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_tags() -> dict[str, str]:
    """Commit and whether anything is uncommitted; empty outside a git checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", *arguments]  # a kill would leave the lock in the user's repository
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
    except FileNotFoundError:
        return {}
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "edgequant.git_dirty": str(bool(git("status", "--porcelain"))).lower()}
