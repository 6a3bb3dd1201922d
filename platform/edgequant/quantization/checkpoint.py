"""`QuantizedCheckpoint`: a folder of safetensors, config.json with the scheme, tokenizer, SHA-256 of every file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgequant.disk.faults import check_room
from edgequant.errors import UserError
from edgequant.files import write_atomically
from edgequant.folders import MANIFEST, atomic_folder
from edgequant.models.configs import OUR_METHOD, folder_config, whole_number
from edgequant.models.manifest import verify, write_manifest
from edgequant.quantization.scheme import Scheme

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A checkpoint on disk. `parameters` counts tied weights once."""

    folder: Path
    scheme: Scheme
    parameters: int

    @property
    def weight_bytes(self) -> int:
        """Size of the safetensors on disk."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


def save(
    model: Any, tokenizer: Any, folder: Path, scheme: Scheme, *, parameters: int, made_from: str
) -> QuantizedCheckpoint:
    """Write a converted model as a checkpoint folder, whole or not at all.

    Args:
        model: a transformers model after `convert`; tied weights are written once.
        tokenizer: saved beside it.
        folder: target: new, empty, or an earlier checkpoint, which is replaced.
        scheme: goes into config.json, where `AutoModelForCausalLM.from_pretrained` finds it.
        parameters: number of unique parameters of the floating-point model, for bits per parameter.
        made_from: short name of the model; becomes `edgequant_model` in config.json.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in unique_state(model).items()}
    check_room(folder, sum(tensor.nbytes for tensor in tensors.values()), "the checkpoint")
    with atomic_folder(folder) as temporary:
        # One key alone: safetensors writes several in random order, and equal checkpoints would differ in their hashes.
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        write_atomically(temporary / "config.json", json.dumps(_config(model, scheme, parameters, made_from), indent=2))
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_manifest(temporary, scheme.to_dict())
    return QuantizedCheckpoint(folder, scheme, parameters)


def unique_state(model: Any) -> dict[str, torch.Tensor]:
    """The state without second names for the same tensor (a floating-point head tied to its embedding)."""
    seen: set[int] = set()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.numel() and id(tensor) in seen:
            continue
        seen.add(id(tensor))
        state[name] = tensor
    return state


def _config(model: Any, scheme: Scheme, parameters: int, made_from: str) -> dict[str, Any]:
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = _has_tied_head(model)
    config["quantization_config"] = {"quant_method": OUR_METHOD, "scheme": scheme.to_dict()}
    config["num_parameters_unquantized"] = parameters
    config["edgequant_model"] = made_from
    # Said outright: transformers would otherwise guess the compute type from the first tensor, a float16 scale.
    config["dtype"] = str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch.")
    return config


def _has_tied_head(model: Any) -> bool:
    """By the weights: a configuration that says otherwise would be read as another model."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(found := getattr(head, "is_tied", None), bool):
        return found
    weight = getattr(head, "weight", None)
    return weight is not None and weight is getattr(embedding, "weight", None)


def ensure_manifest(folder: str | Path) -> None:
    """Give a folder that has none a manifest without a scheme: a merged or a bitsandbytes model, about to be filed."""
    if not (Path(folder) / MANIFEST).is_file():
        write_manifest(Path(folder), None)


def open_checkpoint(folder: str | Path) -> QuantizedCheckpoint:
    """Verify every file of a checkpoint folder against its manifest and describe it.

    Raises:
        UserError: as `models.manifest.verify`, or no quantised checkpoint, or a scheme that means nothing.
    """
    folder = Path(folder)
    manifest = verify(folder)
    if manifest["scheme"] is None:
        raise UserError(f"{folder} is not a quantised edgequant checkpoint; make one with `edgequant qat` or `ptq`")
    parameters = whole_number(folder_config(folder), "num_parameters_unquantized")
    if parameters is None:
        raise UserError(f"{folder / 'config.json'} has no num_parameters_unquantized; copy the checkpoint again")
    return QuantizedCheckpoint(folder, read_scheme(manifest["scheme"], folder / MANIFEST), parameters)


def read_scheme(stated: Any, file: str | Path) -> Scheme:
    """A scheme out of a file of unknown origin.

    Raises:
        UserError: it is no scheme; names the file.
    """
    try:
        return Scheme.from_dict(stated)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"the scheme in {file} means nothing ({error}); copy the checkpoint again") from error
