"""GGUF files changed by hand: another program's fields and tensors around the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgequant.export.gguf.tokenizer import WriterOfEmptyLists

DROP = object()
TYPES = {bool: gguf.GGUFValueType.BOOL, str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32}


def rewritten(
    source: Path,
    target: Path,
    fields: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    raw: Sequence[tuple[str, np.ndarray, gguf.GGMLQuantizationType]] = (),
) -> Path:
    """The file with fields (`DROP` removes one) and float32 tensors changed or added; `raw` ones as they are stored."""
    reader = gguf.GGUFReader(source)
    values = {name: one for name, one in reader.fields.items() if not name.startswith("GGUF.")}
    changes = dict(fields or {})
    architecture = changes.pop("general.architecture", values["general.architecture"].contents())
    writer = WriterOfEmptyLists(target, str(architecture))
    for name, one in values.items():
        if name != "general.architecture" and name not in changes:
            kinds = [*one.types, gguf.GGUFValueType.STRING][:2]  # an empty list does not say
            sub = kinds[1] if one.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, one.contents(), one.types[0], sub)
    for name, value in changes.items():
        if value is not DROP:
            _add(writer, name, value)
    kept: dict[str, Any] = {one.name: one.data for one in reader.tensors if one.tensor_type.name == "F32"}
    for name, data in (kept | dict(tensors or {})).items():
        if data is not DROP:
            writer.add_tensor(name, np.ascontiguousarray(data, dtype=np.float32))
    for name, data, kind in raw:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, list):
        kind = TYPES.get(type(value[0]), gguf.GGUFValueType.INT32)
        writer.add_key_value(name, value, gguf.GGUFValueType.ARRAY, kind)
    else:
        writer.add_key_value(name, value, TYPES.get(type(value), gguf.GGUFValueType.UINT32))


def tensor(file: Path, name: str) -> np.ndarray:
    """A float32 tensor of a file."""
    return next(np.array(one.data) for one in gguf.GGUFReader(file).tensors if one.name == name)
