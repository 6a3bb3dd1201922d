"""A checkpoint of ours, and the compressed-tensors folder that was written of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from library_versions import needs_transformers
from small_models import IDS, checkpoint_of
from transformers import AutoModelForCausalLM

from edgequant import models
from edgequant.export.compressed_tensors.write import write_compressed_tensors
from edgequant.models.loading import LoadedModel
from edgequant.quantization.scheme import Scheme, parse_scheme

__all__ = ["IDS", "Folders", "checkpoint_of", "exported"]


class Folders(NamedTuple):
    """Our model, and the same model as transformers reads it from the exported folder."""

    ours: LoadedModel
    theirs: Any
    folder: Path
    notes: list[str]


def exported(loaded: LoadedModel, scheme: str | Scheme, folder: Path, **options: Any) -> Folders:
    if (parse_scheme(scheme) if isinstance(scheme, str) else scheme).embedding is not None:
        needs_transformers("5.23", "read a compressed-tensors folder with a quantised embedding")
    ours = checkpoint_of(loaded, scheme, folder / "checkpoint", **options)
    written = write_compressed_tensors(ours, folder / "plain")
    theirs = AutoModelForCausalLM.from_pretrained(written.path)
    return Folders(ours._replace(model=models.cast(ours.model, "float32")), theirs, written.path, written.notes)
