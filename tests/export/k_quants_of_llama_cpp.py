"""llama.cpp's own rounding and decoding of K-quants, called in xllamacpp's library."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import lru_cache
from pathlib import Path

import gguf
import numpy as np
import pytest

FOUND = importlib.util.find_spec("xllamacpp")
needs_llama_cpp = pytest.mark.skipif(FOUND is None, reason="xllamacpp is not installed")
KINDS = {"q4_k": gguf.GGMLQuantizationType.Q4_K, "q6_k": gguf.GGMLQuantizationType.Q6_K}
NAMES = {"q4_k": "dequantize_row_q4_K", "q6_k": "dequantize_row_q6_K"}


@lru_cache
def library() -> ctypes.CDLL:
    assert FOUND is not None and FOUND.origin is not None
    found = ctypes.CDLL(str(next(Path(FOUND.origin).parent.glob("xllamacpp*.so"))))
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
    for name in NAMES.values():
        getattr(found, name).argtypes, getattr(found, name).restype = [pointer, pointer, whole], None
    return found


def decoded(stored: np.ndarray, layout: str) -> np.ndarray:
    """Float32 values [rows, features] of rows of bytes, by llama.cpp's reference decoder."""
    block, size = gguf.GGML_QUANT_SIZES[KINDS[layout]]
    stored = np.ascontiguousarray(stored)
    values = np.empty((len(stored), stored.shape[1] // size * block), dtype=np.float32)
    getattr(library(), NAMES[layout])(stored.ctypes.data, values.ctypes.data, values.size)
    return values


def rounded(values: np.ndarray, layout: str, importance: np.ndarray | None = None) -> np.ndarray:
    """What llama.cpp's own quantisation makes of float32 values [rows, features], decoded again.

    `importance` [features] is an imatrix.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    importance = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    block, size = gguf.GGML_QUANT_SIZES[KINDS[layout]]
    stored = np.zeros((len(values), values.shape[1] // block * size), dtype=np.uint8)
    weights = None if importance is None else importance.ctypes.data
    library().ggml_quantize_chunk(int(KINDS[layout]), values.ctypes.data, stored.ctypes.data, 0, *values.shape, weights)
    return decoded(stored, layout)
