"""Models that edgequant makes and keeps in its cache: written whole or not at all, verified, made again if damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.models.manifest import verify, write_manifest


def kept_folder(folder: Path, make: Callable[[], tuple[Any, Any]]) -> Path:
    """A transformers folder of the cache, every file as it was written; made where it is not there or damaged.

    Args:
        folder: where it is kept.
        make: gives the model and its tokenizer.
    """
    if not _is_whole(folder):
        model, tokenizer = make()
        save_folder(model, tokenizer, folder)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except (UserError, OSError):
        return False
    return True


def save_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """A model and its tokenizer with a manifest, moved to their place whole: a reader never finds half a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Scratch(folder.parent, f".{folder.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        write_manifest(new, None)
        try:
            if folder.exists():
                folder.replace(old)
            new.replace(folder)
        except OSError:
            if not _is_whole(folder):  # not lost to another process that made the same folder first
                raise
