"""What a data set folder says about itself; without it a data set is incomplete. Light."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What an earlier run wrote about its data set, or None where there is no complete one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(manifest, dict) and all((folder / name).exists() for name in manifest.get("contents", ["?"]))
    return manifest if complete else None
