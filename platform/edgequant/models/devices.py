"""Devices and compute types: what `auto` means, and casts that keep rotary frequencies."""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

FLOAT16_OVERFLOW = 65520.0  # from here on float16 rounds to infinity
DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_dtype(dtype: str, device: str) -> str:
    """`auto` to bfloat16 where the device computes it natively, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if computes_bfloat16(device) else "float32"


def cast(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """Cast a model in place as `from_pretrained(dtype=...)` would have loaded it; returns it.

    Rotary frequencies stay as they are: rounded to bfloat16, they turn distant positions by whole radians.

    Raises:
        UserError: a weight is beyond float16's range, and would become infinite; names it.
    """
    import torch

    if dtype == "float16":
        _check_fits_float16(model)
    frequencies = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if "inv_freq" in name]
    model.to(getattr(torch, dtype))
    for module, name, buffer in frequencies:
        module._buffers[name] = buffer
    return model


def check_finite(model: nn.Module) -> None:
    """Refuse a model of whose weights one is NaN or infinite: rounding would make an ordinary integer of it.

    Raises:
        UserError: names the tensor.
    """
    buffers = {name: tensor for name, tensor in model.named_buffers() if name.endswith((".scale", ".minimum"))}
    for name, tensor in (dict(model.named_parameters()) | buffers).items():
        if not is_finite(tensor):
            broken = int((~tensor.detach().isfinite()).sum())
            raise UserError(
                f"weights must be finite, got {broken:,} of {tensor.numel():,} that are NaN or infinite in {name}; "
                "take another copy of the model, or dtype float32 or bfloat16 where float16 cannot hold it"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of any shape holds numbers only; integers and what has no data do."""
    import torch

    if tensor.is_meta or tensor.numel() == 0 or tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return True
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())  # in one pass; NaN wins


def _check_fits_float16(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel():
            largest = float(parameter.detach().abs().amax())
            if largest >= FLOAT16_OVERFLOW:
                raise UserError(
                    f"weights must be within float16's 65,504 for dtype float16, got {largest:,.0f} in {name}; use "
                    "bfloat16 or float32"
                )


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

    check_device(device)
    if device == "auto":
        return _own_gpu() if torch.cuda.is_available() else "cpu"
    return _own_gpu() if device == "cuda" else device


def check_device_name(device: Any) -> None:
    """Refuse what names no device, without a look at the machine.

    Raises:
        UserError: names it, and what was probably meant.
    """
    if isinstance(device, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
        return
    kind = str(device).strip().lower().partition(":")[0]
    meant = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "nvidia": "cuda"}.get(kind, "auto")
    fix = f"{kind} is not supported, write cpu" if kind in _OTHER_DEVICES else f"write {meant}"
    raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {str(device)!r}; {fix}")


_OTHER_DEVICES = ("mps", "metal", "xpu", "npu", "tpu", "hpu", "xla", "rocm", "hip", "vulkan", "directml", "meta")


def check_device(device: Any) -> None:
    """Refuse a device that is malformed or that this machine does not have; torch is imported only to look for CUDA.

    Raises:
        UserError: names it, and those that there are.
    """
    check_device_name(device)
    if not device.startswith("cuda"):
        return
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old; the message says that there is no device
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= found:
        fix = f"use cuda:0 to cuda:{found - 1}, cpu or auto" if found else "use cpu or auto"
        raise UserError(f"device {device!r} not found: torch sees {found} CUDA devices; {fix}")


def check_dtype(dtype: Any) -> None:
    """Refuse a compute type that does not exist.

    Raises:
        UserError: names it, and what was probably meant.
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return
    name = str(dtype).strip().lower().removeprefix("torch.")
    meant = next((known for known, others in _DTYPE_NAMES.items() if name == known or name in others), None)
    fix = f"write {meant}" if meant else "integers are a scheme's: --scheme" if "int" in name else "write auto"
    raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {str(dtype)!r}; {fix}")


_DTYPE_NAMES = {
    "float32": ("fp32", "f32", "float", "single", "full", "32"),
    "bfloat16": ("bf16", "b16", "bfloat", "brain"),
    "float16": ("fp16", "f16", "half", "16"),
    "auto": ("none", "null", "default", ""),
}


def _own_gpu() -> str:
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"
