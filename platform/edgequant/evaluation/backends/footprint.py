"""Three separate sizes: bytes on disk, bytes resident, peak memory. GB is 10^9 bytes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from edgequant.models.same_function.integers_of_bitsandbytes import layout_held

GB = 1e9
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx")


def footprint_metrics(model: Any, checkpoint: Path | None = None) -> dict[str, float]:
    """Size of a model on disk and in memory, and what that is against half and single precision.

    `size/checkpoint_gb`: the checkpoint's weight files with scales and zero points; without a checkpoint, the bytes
    that the parameters take in their dtype, tied weights once. `size/bits_per_parameter`: those bytes over the
    parameters of the unquantised architecture. `size/reduction_vs_fp16` and `_fp32`: per cent saved against 2 and 4
    bytes per parameter. `size/resident_gb`: parameters, buffers and what kernels keep of them, in memory now.
    """
    resident, parameters = resident_bytes(model), unquantized_parameters(model)
    on_disk = checkpoint_bytes(checkpoint) if checkpoint is not None else resident_parameter_bytes(model)
    return size_metrics(on_disk, parameters) | {"size/resident_gb": resident / GB}


def size_metrics(checkpoint: int, parameters: int) -> dict[str, float]:
    """The sizes that follow from bytes on disk and a number of unquantised parameters."""
    return {
        "size/checkpoint_gb": checkpoint / GB,
        "size/parameters": float(parameters),
        "size/bits_per_parameter": 8 * checkpoint / parameters,
        "size/reduction_vs_fp16": 100 * (1 - checkpoint / (2 * parameters)),
        "size/reduction_vs_fp32": 100 * (1 - checkpoint / (4 * parameters)),
    }


def checkpoint_bytes(checkpoint: Path) -> int:
    """Bytes of a checkpoint's weight files; `checkpoint` is a folder or one file.

    Raises:
        FileNotFoundError: it holds no weights.
    """
    checkpoint = Path(checkpoint)
    if checkpoint.is_file():
        return checkpoint.stat().st_size
    files = [path for path in checkpoint.rglob("*") if path.suffix in WEIGHT_SUFFIXES and path.is_file()]
    # The same weights in two formats are one checkpoint; safetensors is what gets loaded.
    best = [path for path in files if path.suffix == ".safetensors"] or files
    if not best:
        raise FileNotFoundError(f"{checkpoint} holds no weight files ({', '.join(WEIGHT_SUFFIXES)})")
    return sum(path.stat().st_size for path in best)


def resident_bytes(model: Any) -> int:
    """Bytes of all parameters, buffers and modules' `kernel_operands()`, tensors that share storage once.

    Operands are there as soon as a token was decoded.
    """
    operands = [part for module in model.modules() for part in getattr(module, "kernel_operands", list)()]
    return _storage_bytes([*model.parameters(), *model.buffers(), *operands])


def resident_parameter_bytes(model: Any) -> int:
    """Bytes of what a checkpoint would hold: parameters and persistent buffers, shared storage once."""
    with layout_held(model):
        state = model.state_dict(keep_vars=True)
    return _storage_bytes([value for value in state.values() if torch.is_tensor(value)])


def unquantized_parameters(model: Any) -> int:
    """Parameters of the architecture before quantisation, tied weights once.

    Packed models say so in their config (`num_parameters_unquantized`). bitsandbytes packs two 4-bit weights a byte,
    which transformers knows how to count.
    """
    stated = getattr(model.config, "num_parameters_unquantized", None)
    if stated:
        return int(stated)
    seen: set[int] = set()
    count = 0
    for parameter in model.parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
            count += int(torch.Size(shape).numel()) if shape is not None else parameter.numel()
    return count


class PeakMemory:
    """Peak memory in bytes between entering and leaving: process RSS, and CUDA allocations where there is a GPU.

    Example:
        with PeakMemory() as peak:
            model.generate(...)
        peak.metrics()  # {"size/peak_rss_gb": ..., "size/peak_cuda_gb": ...}
    """

    def __enter__(self) -> PeakMemory:
        _reset_peak_rss()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        self.rss = _peak_rss()
        self.cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0

    def metrics(self) -> dict[str, float]:
        """`size/peak_rss_gb`, and `size/peak_cuda_gb` where a GPU was there."""
        return {"size/peak_rss_gb": self.rss / GB} | ({"size/peak_cuda_gb": self.cuda / GB} if self.cuda else {})


def _storage_bytes(tensors: list[torch.Tensor]) -> int:
    plain = [part for tensor in tensors for part in _plain_parts(tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in plain}
    return sum(storages.values())


def _plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors inside a wrapper, as torchao's quantised weights are; a plain tensor itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain_parts(getattr(tensor, name))]


def _reset_peak_rss() -> None:
    """Linux keeps the high-water mark of the whole process; writing 5 here starts it anew, without what is free."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_rss() -> int:
    status = Path(f"/proc/{os.getpid()}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
