"""What a data set folder says about itself; its presence tells a complete data set from anything else. Light."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgequant.errors import UserError

MANIFEST = "manifest.json"


def check_output(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: it is a file, or has content but no manifest of an earlier data set.
    """
    if folder.is_file():
        raise UserError(f"output must be a folder, got the file {str(folder)!r}")
    ours = (MANIFEST, "dataset_dict.json")  # an interrupted write leaves the second without the first
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in ours):
        raise UserError(
            f"output must be a new folder or a data set of this workflow, got {str(folder)!r}, which holds other files"
        )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What an earlier run wrote about its data set, or None where there is no complete one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(manifest, dict) and all((folder / name).exists() for name in manifest.get("contents", ["?"]))
    return manifest if complete else None
