"""llama.cpp's importance matrix, as its `llama-imatrix` defines it, from a model in transformers.

Of every linear in the decoder blocks the mean square of each input feature over the calibration text; the head has none
(`llama-imatrix` leaves it out unless asked). Written in llama.cpp's first file format, which its quantiser reads.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from gguf import get_tensor_name_map
from torch import Tensor, nn

from edgequant.export.gguf.architectures import architecture_of


@torch.no_grad()
def importance_matrix(model: Any, sequences: Tensor) -> dict[str, Tensor]:
    """Mean squares [in] float32 by the tensor's name in a .gguf file, over token sequences [n, length]."""
    names = get_tensor_name_map(architecture_of(model.config).gguf, model.config.num_hidden_layers)
    sums: dict[str, Tensor] = {}
    handles = []

    def watch(name: str) -> Any:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].float().square().flatten(0, -2).sum(0).cpu()
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    for name, module in model.named_modules():
        stored = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if isinstance(module, nn.Linear) and stored is not None and stored.startswith("blk."):
            handles.append(module.register_forward_pre_hook(watch(str(stored))))
    try:
        for row in sequences:
            model(input_ids=row[None].to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: squares / sequences.numel() for name, squares in sums.items()}


def write_importance(found: dict[str, Tensor], file: Path, sequences: int) -> None:
    """Write an importance matrix; its values are stored times the number of sequences, as sums over calls were."""
    with file.open("wb") as stream:
        stream.write(struct.pack("=i", len(found)))
        for name, squares in found.items():
            encoded, values = name.encode(), (squares * sequences).tolist()
            stream.write(struct.pack(f"=i{len(encoded)}sii", len(encoded), encoded, sequences, len(values)))
            stream.write(struct.pack(f"={len(values)}f", *values))
