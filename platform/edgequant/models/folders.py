"""A model's folder, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any


def save_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Written beside its place and moved there whole: a reader never finds half a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if not (folder / "config.json").is_file():
            temporary.replace(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # not lost to another process that made the same folder first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
