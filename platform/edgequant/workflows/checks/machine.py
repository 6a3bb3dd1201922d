"""The machine: devices, which integer kernels compute right on them, disk and memory."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

from edgequant.disk.faults import existing, free_bytes
from edgequant.files import cache_dir
from edgequant.workflows.checks.finding import Finding

MINIMUM_DISK_GB, MINIMUM_MEMORY_GB = 5.0, 6.0
PROBE = 65_536  # bytes, which a full disk does not take


def devices() -> list[Finding]:
    """CPU threads; each CUDA device with its memory and whether it computes in bfloat16."""
    import torch

    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.machine()}"
    findings = [Finding("CPU", "ok", threads)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bfloat16 = "bf16" if properties.major >= 8 else "no bf16 (training falls back to fp32)"
        found = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {bfloat16}"
        findings.append(Finding(f"cuda:{index}", "ok", found))
    if not torch.cuda.is_available():
        findings.append(Finding("GPU", "note", "none that torch sees; everything runs on the CPU, slower"))
    return findings


def integer_kernels() -> list[Finding]:
    """Which of PyTorch's integer kernels compute right on each device, and what takes the others' place."""
    import torch

    from edgequant.quantization.layers.trusted_kernels import KERNELS, is_trusted

    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    pairs = [(kernel, name) for name in names for kernel in KERNELS if name.partition(":")[0] in kernel.devices]
    wrong = [(kernel, name) for kernel, name in pairs if not is_trusted(kernel, torch.device(name))]
    right = "; ".join(f"{kernel.name} on {name}" for kernel, name in pairs if (kernel, name) not in wrong)
    notes = [
        Finding("integer kernels", "note", f"not trusted: {kernel.name} on {name}; used instead: {kernel.instead}")
        for kernel, name in wrong
    ]
    return [Finding("integer kernels", "ok", f"trusted: {right or 'none'}"), *notes]


def disk_and_memory() -> list[Finding]:
    """Where runs and what can be made again are written: whether that can be, and the free space; memory."""
    import psutil

    memory = psutil.virtual_memory()
    memory_state = "ok" if memory.available / 1e9 >= MINIMUM_MEMORY_GB else "note"
    return [
        _room("disk", Path.cwd(), "work in a folder that can be written to"),
        _room("cache", cache_dir(), "name a folder that can be written to in EDGEQUANT_CACHE"),
        Finding(
            "memory",
            memory_state,
            f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB available",
            _unless(memory_state, f"qat on smollm2-135m wants {MINIMUM_MEMORY_GB:.0f} GB; use --model tiny"),
        ),
    ]


def _room(what: str, folder: Path, fix: str) -> Finding:
    """Nothing is left there, and a folder that does not exist is not made: its nearest parent is asked."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)) as file:
            file.write(bytes(PROBE))
            file.flush()
    except OSError as error:
        return Finding(what, "missing", f"{folder} cannot be written to: {error.strerror}", fix)
    free = free_bytes(folder) / 1e9
    state = "ok" if free >= MINIMUM_DISK_GB else "note"
    return Finding(what, state, f"{free:.0f} GB free in {folder}", _unless(state, "free some space"))


def _unless(state: str, fix: str) -> str:
    return "" if state == "ok" else fix
