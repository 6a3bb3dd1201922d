"""What the weight files of a folder hold, read from their headers: whole files, every shard, no bare integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.files import cache_dir
from edgequant.models import hub
from edgequant.models.configs import CONFIG, check_fetched, folder_config, read_object, stated_quantization

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
HEADER_BYTES = 100_000_000  # the most that the format allows
FLOATS = ("F64", "F32", "F16", "BF16")


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read, in its order of preference, each of them there.

    Raises:
        UserError: there are none, or an index names one that is not there.
    """
    for single, index in ((SINGLE, INDEX), (BIN, BIN_INDEX)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder, folder / index)
    for link in (folder / name for name in (SINGLE, INDEX, BIN, BIN_INDEX)):
        if link.is_symlink() and not link.exists():
            raise UserError(
                f"{link} is a link to {link.readlink()}, which is not there; copy the folder with its files"
            )
    others = sorted(file.name for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin")))
    found = f"; {', '.join(others[:3])} is not named so" if others else ""
    raise UserError(
        f"weights (*.safetensors) not found in model folder {str(folder)!r}, which has a config.json: neither "
        f"{SINGLE}, {INDEX} nor {BIN}{found}; copy it whole"
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    named = read_object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"{index} must hold a weight_map of tensor to file; copy the model's folder again")
    names = sorted(set(named.values()))
    if escaping := [name for name in names if Path(name).name != name]:
        raise UserError(
            f"{index} must name files of its own folder, got {escaping[0]!r}; copy the model's folder again"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"model folder {folder}: {missing[0]} not found, {len(missing)} of the {len(names)} files that "
            f"{index.name} names; copy the model's folder again"
        )
    return [folder / name for name in names]


def check_weight_files(folder: Path, *, quantized_by: str | None) -> None:
    """Refuse files that are cut off or are no weights, and integers that no quantization_config explains.

    Args:
        folder: of a transformers model.
        quantized_by: the method by which its config.json says that the weights are quantised.

    Raises:
        UserError: names the file, and the tensor.
    """
    files = weight_files(folder)
    for file in files:
        check_fetched(file)
    stored = {file: safetensors_header(file) for file in files if file.suffix == ".safetensors"}
    kinds = {name: (file, entry["dtype"]) for file, header in stored.items() for name, entry in header.items()}
    integers = [name for name, (_, kind) in kinds.items() if name.endswith(".weight") and kind not in FLOATS]
    if integers and quantized_by is None:
        file, kind = kinds[integers[0]]
        raise UserError(
            f"{file}: tensor {integers[0]} is stored as {kind} and config.json has no quantization_config that says "
            "what it stands for; copy the whole folder, or the model before it was quantised"
        )
    if stored and quantized_by == "bitsandbytes":
        _check_bitsandbytes(folder, integers, set(kinds))


def _check_bitsandbytes(folder: Path, integers: list[str], names: set[str]) -> None:
    if not integers:
        raise UserError(
            f"model folder {folder}: config.json says quantised by bitsandbytes, and its weights are floating-point; "
            "remove quantization_config from config.json, or copy the weights that belong to it"
        )
    for name in integers:
        scales = (f"{name.removesuffix('.weight')}.SCB", f"{name}.absmax")
        if not names & set(scales):
            raise UserError(
                f"model folder {folder}: tensor {name} has no scales ({' or '.join(scales)}); copy it again"
            )
    weights = {f"{name.removesuffix('.SCB')}.weight" for name in names if name.endswith(".SCB")}
    weights |= {name.removesuffix(".absmax") for name in names if name.endswith(".absmax")}
    if lost := sorted(weights - names):
        raise UserError(f"model folder {folder}: tensor {lost[0]} not found beside its scales; copy it again")


def weights_read_by(model: Any) -> Path | None:
    """The folder whose weights a model of transformers was loaded from, the hub's cache included.

    Returns:
        None where no folder holds what the model holds: built-in models, which are computed here, adapters that are
        kept apart, and weights that a quantiser rounded while it read them.
    """
    named = str(getattr(model, "name_or_path", ""))
    if not named or hasattr(model, "peft_config"):
        return None
    folder = Path(named) if Path(named).is_dir() else hub.cached_folder(named)
    if folder is None or not (folder / CONFIG).is_file() or folder.parent == cache_dir() / "models":
        return None
    rounded_here = getattr(model, "is_quantized", False) and stated_quantization(folder_config(folder)) is None
    return None if rounded_here else folder


def safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """Name, `dtype`, `shape` and `data_offsets` of each tensor of a safetensors file.

    Raises:
        UserError: the file is shorter or longer than its header says, or has none.
    """
    check_fetched(file)
    size = file.stat().st_size
    with file.open("rb") as stored:
        begin = stored.read(8)
        length = int.from_bytes(begin, "little")
        try:
            if len(begin) < 8 or length > min(HEADER_BYTES, size):
                raise ValueError("no header")
            header = json.loads(stored.read(length))
            header.pop("__metadata__", None)
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise UserError(f"{file} is not a safetensors file ({error}); copy it again") from error
    if end != size:
        raise UserError(f"{file} is damaged: {size:,} bytes, its header says {end:,}; copy it again")
    return dict(header)
