"""Training checkpoints: each with a manifest of its files, written last; the newest whole one is gone on with.

Two are kept, so that one that a kill, a full disk or a fault of the disk has damaged costs no more than its own steps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from edgequant.errors import UserError
from edgequant.files import sha256_of, write_atomically

MANIFEST = "training-checkpoint.json"  # of a checkpoint: SHA-256 of its files, and of the text that it was trained on
STATE = "trainer_state.json"
KEPT = 2


class Checkpoint(NamedTuple):
    """A training checkpoint on disk, and after how many steps it was written."""

    folder: Path
    step: int


def text_digest(tokens: Tensor) -> str:
    """Of a training text [sequences, length] int64."""
    return hashlib.sha256(repr(tuple(tokens.shape)).encode() + tokens.cpu().numpy().tobytes()).hexdigest()[:32]


def write_manifest(folder: Path, text: str) -> None:
    """Say that a checkpoint is whole, then remove older ones than are kept beside it.

    Args:
        text: digest of what is trained on.
    """
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    write_atomically(folder / MANIFEST, json.dumps({"text": text, "files": files}, indent=1))
    for old in _by_step(folder.parent)[KEPT:]:
        shutil.rmtree(old.folder, ignore_errors=True)


def newest_whole(folder: Path, text: str, title: str, *, resume: bool = True) -> Checkpoint | None:
    """The checkpoint to go on with, and a line that says so; those that are damaged are told, removed and passed over.

    Without `resume` there is none, and what another training has left in the folder is removed.

    Args:
        folder: of the training.
        text: digest of what is trained on.
        title: of the training, for what is said.

    Raises:
        UserError: it was trained on another text.
    """
    for found in _by_step(folder):
        if not resume:
            shutil.rmtree(found.folder, ignore_errors=True)
            continue
        if fault := _fault(found.folder):
            print(f"{title}: training checkpoint {found.folder.name} {fault}, and is passed over", flush=True)
            shutil.rmtree(found.folder, ignore_errors=True)
            continue
        if json.loads((found.folder / MANIFEST).read_text())["text"] != text:
            raise UserError(
                f"{title}: the training text has changed since training checkpoint {str(found.folder)!r} was written, "
                "which cannot go on with it; bring back the text that it was, or begin anew without --resume true"
            )
        print(f"{title}: goes on behind step {found.step}, from {found.folder.name}", flush=True)
        return found
    if resume:
        print(f"{title}: no training checkpoint to go on with, begins at its first step", flush=True)
    return None


def _by_step(folder: Path) -> list[Checkpoint]:
    """Newest first, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit() and path.is_dir()]
    steps = [Checkpoint(path, int(path.name.rpartition("-")[2])) for path in found]
    return sorted(steps, key=lambda checkpoint: -checkpoint.step)


def _fault(folder: Path) -> str:
    """Why a checkpoint cannot be gone on with; empty where it is as it was written."""
    try:
        files = dict(json.loads((folder / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "was not written to its end"
    if STATE not in files:
        return f"has no {STATE}"
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if sha256_of(path) != digest:
            return f"is damaged ({name} is not as it was written)"
    return ""
