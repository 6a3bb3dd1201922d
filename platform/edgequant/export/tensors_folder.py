"""A folder of safetensors beside a config.json that says how they are quantised, as transformers and vLLM read one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from edgequant.export.formats import Exported
from edgequant.files import sha256_of, write_atomically
from edgequant.folders import atomic_folder
from edgequant.models.loading import LoadedModel

WEIGHTS = "model.safetensors"


def write_tensors_folder(
    loaded: LoadedModel,
    folder: str | Path,
    kind: str,
    tensors: Mapping[str, Tensor],
    stated: Mapping[str, Any],
    notes: list[str],
    *,
    beside: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a quantised checkpoint as a folder, whole or not at all.

    Args:
        loaded: a checkpoint of ours.
        folder: to write: new, empty, or an earlier export of this kind, which is replaced.
        kind: of the folder, see `folders.atomic_folder`.
        tensors: under the names that the format gives them, contiguous, on the CPU.
        stated: what config.json says beside the model's own configuration.
        notes: of the export.
        beside: further JSON files by name.
    """
    model: Any = loaded.model
    config = model.config.to_dict() | dict(stated) | {"architectures": [type(model).__name__]}
    config.pop("_name_or_path", None)
    with atomic_folder(folder, kind) as temporary:
        save_file(dict(tensors), temporary / WEIGHTS, metadata={"format": "pt"})
        for name, content in {"config.json": config, **(beside or {})}.items():
            write_atomically(temporary / name, json.dumps(content, indent=2))
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
    written = Path(folder) / WEIGHTS
    parameters = int(model.config.num_parameters_unquantized)
    return Exported(Path(folder), written.stat().st_size, sha256_of(written), parameters, notes)
