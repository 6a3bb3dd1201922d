"""A folder for onnxruntime-genai: known by its genai_config.json. Light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.files import sha256_of
from edgequant.folders import made_here
from edgequant.models.configs import read_object

GENAI_CONFIG = "genai_config.json"
KIND = "onnx"  # of a model source, of an export's format and of the folder that it writes
SCHEME, PARAMETERS = "edgequant.scheme", "edgequant.parameters"  # what our graphs say of themselves
DECODER_SIZES = ("head_size", "num_hidden_layers", "num_key_value_heads")


def is_onnx_folder(folder: Path) -> bool:
    """Whether onnxruntime-genai would read the folder."""
    return (folder / GENAI_CONFIG).is_file()


def read_genai_config(folder: Path) -> dict[str, Any]:
    """The part `model` of a folder's genai_config.json.

    Raises:
        UserError: it is no JSON, or says neither the graph's file nor the sizes that running it takes.
    """
    file = folder / GENAI_CONFIG
    model = _object(read_object(file).get("model"))
    decoder = _object(model.get("decoder"))
    wanted = {f"decoder.{name}": decoder.get(name) for name in DECODER_SIZES}
    wanted |= {name: model.get(name) for name in ("context_length", "vocab_size")}
    lacking = [name for name, value in wanted.items() if not isinstance(value, int) or value < 1]
    if lacking or not isinstance(decoder.get("filename"), str):
        name = lacking[0] if lacking else "decoder.filename"
        raise UserError(
            f"{file} must say model.{name} of a decoder, got none that can be used; export the folder again"
        )
    if not (folder / decoder["filename"]).is_file():
        raise UserError(f"{decoder['filename']} not found in {folder}, which its {GENAI_CONFIG} names; copy it again")
    return model


def _object(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def check_unchanged(folder: Path) -> None:
    """Refuse a folder of ours in which a file is missing or was changed since it was written.

    Raises:
        UserError: names the file.
    """
    made = made_here(folder)
    for name, expected in (made.sha256 if made is not None and made.kind == KIND else {}).items():
        if not (folder / name).is_file():
            raise UserError(f"onnx folder {folder}: {name} not found; copy the whole folder again")
        if sha256_of(folder / name) != expected:
            raise UserError(
                f"onnx folder {folder}: {name} was changed since edgequant wrote it; copy or export it again"
            )


def not_for_torch(location: str) -> UserError:
    """The error for such a folder where weights for torch are wanted."""
    return UserError(
        f"model {location!r} is a folder for onnxruntime-genai, which torch does not load; measure it with `edgequant "
        "evaluate --runtime onnx`, or give the checkpoint that it was made of"
    )
