"""A checkpoint of ours, and the compressed-tensors folder that was written of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from library_versions import needs_transformers
from transformers import AutoModelForCausalLM

from edgequant import models
from edgequant.export.compressed_tensors.write import write_compressed_tensors
from edgequant.models.loading import LoadedModel
from edgequant.quantization import checkpoint
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.scheme import Scheme, parse_scheme

IDS = torch.randint(0, 256, (2, 96), generator=torch.Generator().manual_seed(1))


class Folders(NamedTuple):
    """Our model, and the same model as transformers reads it from the exported folder."""

    ours: LoadedModel
    theirs: Any
    folder: Path
    notes: list[str]


def checkpoint_of(loaded: LoadedModel, scheme: str | Scheme, folder: Path, dtype: str = "float32") -> LoadedModel:
    """Quantise a copy, save it, and load it as a workflow does."""
    model, parsed = copy.deepcopy(loaded.model), parse_scheme(scheme) if isinstance(scheme, str) else scheme
    prepare(model, parsed)
    if has_static_ranges(model):
        calibrate(model, [IDS])
    convert(model)
    models.cast(model, dtype)
    parameters = loaded.model.num_parameters()
    checkpoint.save(model, loaded.tokenizer, folder, parsed, parameters=parameters, made_from="tiny")
    return models.load(str(folder), device="cpu")


def exported(loaded: LoadedModel, scheme: str | Scheme, folder: Path, **options: Any) -> Folders:
    if (parse_scheme(scheme) if isinstance(scheme, str) else scheme).embedding is not None:
        needs_transformers("5.23", "read a compressed-tensors folder with a quantised embedding")
    ours = checkpoint_of(loaded, scheme, folder / "checkpoint", **options)
    written = write_compressed_tensors(ours, folder / "plain")
    theirs = AutoModelForCausalLM.from_pretrained(written.path)
    return Folders(ours._replace(model=models.cast(ours.model, "float32")), theirs, written.path, written.notes)
