"""What stands in a GGUF file: its fields as Python values, and where its tensors lie."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor

from edgequant.errors import UserError
from edgequant.files import sha256_of
from edgequant.folders import made_here
from edgequant.models.configs import check_fetched

MAGIC, VERSIONS = b"GGUF", (2, 3)


@dataclass
class Contents:
    """A GGUF file's fields and tensors. The architecture's fields are taken one by one: what is left is not understood.

    Attributes:
        fields: every field under its whole name, `llama.block_count`; arrays are lists.
        tensors: by their names in the file; `shape` begins with the innermost dimension.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, ReaderTensor]
    _taken: set[str] = field(default_factory=set)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture.

        Raises:
            UserError: the file does not say.
        """
        return str(self._required("general.architecture"))

    def take(self, key: str, default: Any = None) -> Any:
        """The architecture's field, `block_count` for `llama.block_count`; a list of equal values counts as the value.

        Raises:
            UserError: it differs from layer to layer.
        """
        name = f"{self.architecture}.{key}"
        self._taken.add(name)
        value = self.fields.get(name, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.refused(
                    f"field {name} differs from layer to layer, which this architecture cannot have here"
                )
            return value[0]
        return value

    def take_list(self, key: str) -> Any:
        """As `take`, with a list as it stands."""
        name = f"{self.architecture}.{key}"
        self._taken.add(name)
        return self.fields.get(name)

    def require(self, key: str) -> Any:
        """As `take`, for a field without which there is no model.

        Raises:
            UserError: it is not there.
        """
        self._required(f"{self.architecture}.{key}")
        return self.take(key)

    def left(self) -> dict[str, Any]:
        """The architecture's fields that nobody took, by their names without the architecture."""
        prefix = f"{self.architecture}."
        names = [name for name in self.fields if name.startswith(prefix) and name not in self._taken]
        return {name.removeprefix(prefix): self.fields[name] for name in names}

    def tokenizer(self, key: str, default: Any = None) -> Any:
        """The tokenizer's field, `tokens` for `tokenizer.ggml.tokens`."""
        return self.fields.get(f"tokenizer.ggml.{key}", default)

    def refused(self, why: str) -> UserError:
        """The error that refuses this file."""
        return UserError(f"GGUF file {str(self.path)!r} could not be read: {why}")

    def _required(self, name: str) -> Any:
        if name not in self.fields:
            raise self.refused(f"field {name} not found; convert the model again")
        return self.fields[name]


def read_contents(path: Path) -> Contents:
    """Read the fields and the places of the tensors.

    Raises:
        UserError: not a GGUF file of version 2 or 3, cut off, damaged, one part of a split file, or one that we wrote
            and that was changed since.
    """
    status = path.stat()
    fields, tensors = _parsed(path, (status.st_size, status.st_mtime_ns))
    contents = Contents(path, fields, tensors)
    _check_is_a_whole_model(contents)
    return contents


@lru_cache(maxsize=1)  # checked before a run begins, loaded within it
def _parsed(path: Path, state: tuple[int, int]) -> tuple[dict[str, Any], dict[str, ReaderTensor]]:
    refused = Contents(path, {}, {}).refused
    _check_start(path, refused)
    try:
        with warnings.catch_warnings(action="ignore"):
            reader = _StrictReader(path)
            fields = {name: one.contents() for name, one in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        if "GGMLQuantizationType" in str(error):
            raise refused(
                f"it holds a tensor of a type that the gguf package does not know ({error}); pip install -U gguf"
            ) from error
        raise refused(f"it is cut off or damaged ({error}, at {state[0]:,} bytes); copy it again") from error
    made = made_here(path.parent)
    listed = made.sha256.get(path.name) if made is not None else None
    if listed and sha256_of(path) != listed:
        raise refused("it was changed since edgequant wrote it; copy or export it again")
    return fields, {tensor.name: tensor for tensor in reader.tensors}


class _StrictReader(GGUFReader):
    """Beyond the end of a file the gguf package finds nothing, as often as a damaged count says: for ever."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        self.data: Any = np.asarray(self.data)  # slices of a memmap take three times as long, at 4 for each token
        values = super()._get(offset, dtype, count, override_order)
        if len(values) != int(count):
            raise ValueError(f"{int(count):,} values at byte {int(offset):,} are not there")
        return values


def _check_start(path: Path, refused: Any) -> None:
    check_fetched(path)
    with path.open("rb") as handle:
        start = handle.read(8)
    if start[:4] != MAGIC:
        raise refused(f"it must begin with {MAGIC!r}, got {start[:4]!r}; it is another kind of file or damaged")
    version, swapped = (int.from_bytes(start[4:8], order) for order in ("little", "big"))  # type: ignore[arg-type]
    if swapped in VERSIONS:
        raise refused("its numbers are big-endian; convert it with gguf-convert-endian FILE little")
    if version not in VERSIONS:
        raise refused(f"version must be 2 or 3, got {version}; convert the model again with a newer llama.cpp")


def _check_is_a_whole_model(contents: Contents) -> None:
    parts = int(contents.fields.get("split.count", 0) or 0)
    if parts > 1:
        part = int(contents.fields.get("split.no", 0)) + 1
        raise contents.refused(
            f"it is part {part} of {parts} of a split file; join them with "
            "llama-gguf-split --merge FIRST-PART WHOLE.gguf and give that file"
        )
    kind = contents.fields.get("general.type", "model")
    if kind != "model":
        raise contents.refused(f"general.type must be 'model', got {kind!r}; give the language model's file")
