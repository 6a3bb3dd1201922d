"""llama.cpp's own C functions, out of the library that xllamacpp's wheels bring.

xllamacpp's Python interface is that of llama.cpp's server: it gives the probabilities of generated tokens, none of a
prompt's. The extension module of its wheels (x86-64 and aarch64) exports all of llama.h, which is called here through
ctypes; structures are laid out as in the pinned version, and what the library itself fills in is compared with that.
Light: imports neither numpy nor torch, since it is part of what a fresh process holds while it is timed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
from collections import deque
from ctypes import c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from edgequant.errors import UserError

VERSION = "2026.10.11549"
INSTALL = f"pip install xllamacpp=={VERSION}"

said: deque[str] = deque(maxlen=20)
"""The last lines that llama.cpp logged, for messages."""


class ModelParameters(ctypes.Structure):
    """llama.h's `llama_model_params`."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParameters(ctypes.Structure):
    """llama.h's `llama_context_params`."""

    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, c_int32) for name in ("type_k", "type_v")),
        *((name, c_void_p) for name in ("abort_callback", "abort_callback_data", "ctx_other")),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("reserved", c_void_p),
    ]


class Batch(ctypes.Structure):
    """llama.h's `llama_batch`; positions and sequences are left to llama.cpp, which counts on in sequence 0."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", ctypes.POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", ctypes.POINTER(c_int8)),
    ]


# What llama.cpp fills in where nothing is asked for: other values would show another layout.
_MODEL_DEFAULTS: dict[str, Any] = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0}
_MODEL_DEFAULTS |= {"use_extra_bufts": True, "vocab_only": False, "check_tensors": False, "kv_overrides": None}
_CONTEXT_DEFAULTS: dict[str, Any] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
}
_CONTEXT_DEFAULTS |= {"n_threads": 4, "n_threads_batch": 4, "rope_scaling_type": -1, "flash_attn_type": -1}
_CONTEXT_DEFAULTS |= {"yarn_ext_factor": -1, "defrag_thold": -1, "type_k": 1, "type_v": 1, "offload_kqv": True}
_CONTEXT_DEFAULTS |= {"swa_full": True, "embeddings": False, "samplers": None, "n_samplers": 0}

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_version": (c_char_p, []),
    "llama_supports_gpu_offload": (c_bool, []),
    "llama_log_set": (None, [c_void_p, c_void_p]),
    "llama_model_default_params": (ModelParameters, []),
    "llama_context_default_params": (ContextParameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParameters]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_params": (c_uint64, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_meta_val_str": (c_int32, [c_void_p, c_char_p, c_char_p, c_size_t]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParameters]),
    "llama_free": (None, [c_void_p]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_sampler_init_greedy": (c_void_p, []),
    "llama_sampler_sample": (c_int32, [c_void_p, c_void_p, c_int32]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_get_text": (c_char_p, [c_void_p, c_int32]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool]),
}


def changed(parameters: Any, **values: Any) -> Any:
    """Parameters that llama.cpp filled in, some of them changed."""
    for name, value in values.items():
        setattr(parameters, name, value)
    return parameters


@cache
def load_library() -> Any:
    """llama.cpp, ready to load models; what it logs is kept in `said` and not printed.

    Raises:
        UserError: xllamacpp is absent, or of a version whose structures are laid out otherwise.
    """
    library = ctypes.CDLL(str(_extension()))
    try:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise _other_version(str(error)) from None
    _check_layout(library)
    library.llama_log_set(_keep_line, None)
    library.llama_backend_init()
    return library


def version() -> str | None:
    """The installed xllamacpp's version; None where it is not installed."""
    from importlib import metadata  # with all of `email`, which a process that is timed needs not

    try:
        return metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        return None


def _extension() -> Path:
    """The extension module's file, found without importing it: its Python half would count in what is measured."""
    package = importlib.util.find_spec("xllamacpp")
    if package is None:
        raise UserError(
            f"running a GGUF file through llama.cpp needs xllamacpp: {INSTALL} (make setup installs it); "
            "or leave runtime at torch, which evaluates the file's de-quantised weights"
        )
    folders = map(Path, package.submodule_search_locations or ())
    found = next(itertools.chain.from_iterable(folder.glob("xllamacpp*.so") for folder in folders), None)
    if found is None:
        raise UserError(f"xllamacpp is installed without its library for this machine; {INSTALL} again")
    return found


def _check_layout(library: Any) -> None:
    model, context = library.llama_model_default_params(), library.llama_context_default_params()
    for filled, expected in ((model, _MODEL_DEFAULTS), (context, _CONTEXT_DEFAULTS)):
        for name, value in expected.items():
            if (found := getattr(filled, name)) != value:
                raise _other_version(f"{name} is {found} by default and not {value}")


def _other_version(difference: str) -> UserError:
    return UserError(f"xllamacpp must be version {VERSION}, got {version()}, which differs ({difference}); {INSTALL}")


@ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
def _keep_line(level: int, text: bytes, _: Any) -> None:
    if line := text.decode(errors="replace").strip(". \n"):
        said.append(line)
