"""llama.cpp's own quantiser, `llama_model_quantize`, in an environment that has cyllama and need have nothing else.

python -m venv V && V/bin/pip install cyllama==0.2.18       # x86-64; xllamacpp's library has no such function
V/bin/python benchmarks/peers/llama_cpp_quantizer.py model-f16.gguf model-q4_0.gguf Q4_0 [--imatrix model.imatrix]
"""

from __future__ import annotations

import argparse
import ctypes
import struct
from typing import Any

FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q6_K": 18}  # llama.h: llama_ftype
BEHIND_TYPES = struct.Struct("=iiii")  # threads, file type, type of the head, type of the embedding; six bools follow
MARKS = (0x1A2B3C, FILE_TYPES["Q4_0"])


class ImportanceData(ctypes.Structure):
    """llama.h's `llama_model_imatrix_data`; a list ends with an entry without a name."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


def read_importance(path: str) -> dict[str, tuple[float, ...]]:
    """An importance matrix in llama.cpp's first file format: mean squares of the inputs by tensor."""
    found = {}
    with open(path, "rb") as file:
        (entries,) = struct.unpack("=i", file.read(4))
        for _ in range(entries):
            (length,) = struct.unpack("=i", file.read(4))
            name = file.read(length).decode()
            calls, count = struct.unpack("=ii", file.read(8))
            values = struct.unpack(f"={count}f", file.read(4 * count))
            found[name] = tuple(value / max(1, calls) for value in values)
    return found


def importance_list(found: dict[str, tuple[float, ...]]) -> ctypes.Array[ImportanceData]:
    """As `llama_model_quantize` takes it."""
    entries = [
        ImportanceData(name.encode(), (ctypes.c_float * len(values))(*values), len(values))
        for name, values in found.items()
    ]
    return (ImportanceData * (len(entries) + 1))(*entries, ImportanceData())


def give_importance(parameters: Any, entries: ctypes.Array[ImportanceData]) -> None:
    """Set `imatrix`, which cyllama's object shows and does not let one set, in the structure that it holds.

    The structure is found by the two numbers at its beginning; the pointer lies behind four integers and six bools.
    """
    set_type(parameters, *MARKS)
    size = type(parameters).__basicsize__
    memory = (ctypes.c_char * size).from_address(id(parameters))
    starts = [at for at in range(16, size - 32, 8) if BEHIND_TYPES.unpack_from(memory, at)[:2] == MARKS]
    if len(starts) != 1:
        raise SystemExit("cyllama's parameters are laid out in another way; use cyllama==0.2.18")
    struct.pack_into("=Q", memory, starts[0] + BEHIND_TYPES.size + 8, ctypes.addressof(entries))


def set_type(parameters: Any, threads: int, file_type: int) -> None:
    """Threads that quantise, and what a file becomes."""
    for name, value in (("nthread", threads), ("ftype", file_type)):
        setattr(parameters, name, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="an f16 or f32 .gguf file")
    parser.add_argument("target")
    parser.add_argument("file_type", choices=FILE_TYPES)
    parser.add_argument("--imatrix", help="importance matrix in llama.cpp's first file format")
    options = parser.parse_args()
    from cyllama.llama import llama_cpp

    parameters = llama_cpp.LlamaModelQuantizeParams()
    entries = importance_list(read_importance(options.imatrix)) if options.imatrix else None
    if entries is not None:
        give_importance(parameters, entries)
    set_type(parameters, 1, FILE_TYPES[options.file_type])
    llama_cpp.model_quantize(options.source, options.target, parameters)


if __name__ == "__main__":
    main()
