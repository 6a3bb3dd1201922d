"""What a folder's config.json or adapter_config.json says, read as data of unknown origin."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from edgequant.errors import UserError

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
# That a folder may be without: where one cannot be read, transformers goes by its own defaults, and no answer ends.
MAY_BE_MISSING = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
POINTER = b"version https://git-lfs"
OUR_METHOD = "edgequant"  # quant_method of our checkpoints


def check_fetched(file: Path) -> None:
    """Refuse what Git leaves in place of a large file that it did not fetch.

    Raises:
        UserError: names the file.
    """
    with file.open("rb") as stored:
        if stored.read(len(POINTER)) == POINTER:
            raise UserError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        check_fetched(file)
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy the model's folder again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold a JSON object, got {type(found).__name__}; copy the model's folder again")
    return found


def folder_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, empty where there is none.

    Raises:
        UserError: it is no JSON object.
    """
    return read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def check_small_files(folder: Path) -> None:
    """Refuse what is there and cannot be read, instead of doing as if it were not there.

    Raises:
        UserError: names the file.
    """
    for name in MAY_BE_MISSING:
        if os.path.lexists(folder / name):
            read_object(folder / name)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder says that it holds one of our quantised checkpoints."""
    return "edgequant_model" in folder_config(folder)


def stated_quantization(config: dict[str, Any]) -> str | None:
    """The method by which a config.json says that its weights are quantised.

    Raises:
        UserError: quantization_config is no object or names no method.
    """
    stated = config.get("quantization_config")
    if not stated:
        return None
    if not isinstance(stated, dict) or not isinstance(stated.get("quant_method"), str):
        raise UserError(f"quantization_config must be an object with a quant_method, got {str(stated)[:60]!r}")
    return str(stated["quant_method"])


def needs_manifest(folder: Path) -> bool:
    """Whether a folder says that edgequant wrote it in a layout that has a manifest."""
    method = stated_quantization(folder_config(folder))
    return method == OUR_METHOD or (method is None and is_checkpoint(folder))


def whole_number(config: dict[str, Any], name: str) -> int | None:
    """A size in a config, a positive whole number; None where it is not named.

    Raises:
        UserError: it is something else.
    """
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} in {CONFIG} must be a positive whole number, got {value!r}; copy the folder again")
    return value
