"""Devices and compute types: what `auto` means, and casts that keep rotary frequencies."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from edgequant.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_dtype(dtype: str, device: str) -> str:
    """`auto` to bfloat16 where the device computes it natively, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if computes_bfloat16(device) else "float32"


def cast(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """Cast a model in place as `from_pretrained(dtype=...)` would have loaded it; returns it.

    Rotary frequencies stay as they are: rounded to bfloat16, they turn distant positions by whole radians.
    """
    import torch

    frequencies = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if "inv_freq" in name]
    model.to(getattr(torch, dtype))
    for module, name, buffer in frequencies:
        module._buffers[name] = buffer
    return model


def computes_bfloat16(device: str) -> bool:
    """Whether a device has bfloat16 arithmetic of its own (Ampere or later; AVX512-BF16, AMX or Arm BF16)."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pick_device(device: str) -> str:
    """`auto` to `cuda` where there is one, else `cpu`; of the processes that torchrun starts, each takes its own GPU.

    Raises:
        UserError: the device is malformed or not there.
    """
    import torch

    if device == "auto":
        return _own_gpu() if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} not found: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return _own_gpu() if device == "cuda" else device


def _own_gpu() -> str:
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"
