"""Finished decoder blocks on disk, one file each, written whole or not at all: what a crashed PTQ run goes on from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgequant.files import atomic_path
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears
from edgequant.quantization.layers.fixed_weights import fix_codes, fixed_codes_of
from edgequant.quantization.layers.packed_weight import PackedWeight

CODES = "integers."  # packed integers of a linear; every other tensor goes by its own name in the block


def fingerprint(model: nn.Module, batches: list[Tensor], *what: object) -> str:
    """Names a quantisation: the model's weights (by their sums), the calibration tokens and whatever else decides."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        total = float(parameter.detach().double().sum()), float(parameter.detach().double().abs().sum())
        digest.update(f"{name} {tuple(parameter.shape)} {total}".encode())
    for batch in batches:
        digest.update(batch.cpu().to(torch.int64).numpy().tobytes())
    digest.update(repr(what).encode())
    return digest.hexdigest()[:16]


class BlockCheckpoints:
    """A folder of finished blocks; without a folder nothing is kept and nothing is found.

    `with_weights`: the method scales floating-point weights, which QAT may go on from: they are part of the state.
    """

    def __init__(self, folder: Path | None, run: str, *, with_weights: bool = False) -> None:
        self.folder = None if folder is None else Path(folder) / f"ptq-{run}"
        self.with_weights = with_weights

    def save(self, index: int, block: nn.Module, errors: list[dict[str, Any]]) -> None:
        """Write a block whose linears' integers are chosen."""
        if self.folder is None:
            return
        state = _state(block, self.with_weights)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in state.items()}
        with atomic_path(self._file(index)) as temporary:
            save_file(tensors, temporary, metadata={"errors": json.dumps(errors)})

    def holds(self, index: int) -> bool:
        """Whether a block was finished."""
        return self.folder is not None and self._file(index).is_file()

    def restore(self, index: int, block: nn.Module) -> list[dict[str, Any]] | None:
        """Bring a block into its finished state; returns its errors, or None where it was not finished."""
        if not self.holds(index):
            return None
        with safe_open(self._file(index), framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no dict
            errors = json.loads(stored.metadata()["errors"])
        _restore(block, tensors)
        return list(errors)

    def _file(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{index:04d}.safetensors"


def _state(block: nn.Module, with_weights: bool) -> dict[str, Tensor]:
    """Integers of the linears, and everything else: norms, biases, observed ranges, where asked weights."""
    state: dict[str, Tensor] = {}
    for name, layer in fake_quantized_linears(block).items():
        chosen = fixed_codes_of(layer)
        assert chosen is not None
        packed = PackedWeight.of(chosen, layer.out_features, layer.in_features, layer.spec)
        state |= {f"{CODES}{name}.{key}": value for key, value in packed.state_dict().items()}
    others = block.state_dict().items()
    return state | {name: tensor.detach() for name, tensor in others if with_weights or not _is_weight(block, name)}


def _is_weight(block: nn.Module, name: str) -> bool:
    return name.removesuffix(".weight") in fake_quantized_linears(block) and name.endswith(".weight")


@torch.no_grad()
def _restore(block: nn.Module, tensors: dict[str, Tensor]) -> None:
    device = next(block.parameters()).device
    for name, layer in fake_quantized_linears(block).items():
        packed = PackedWeight(layer.out_features, layer.in_features, layer.spec)
        prefix = f"{CODES}{name}."
        packed.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        fix_codes(layer, packed.to(device).unpacked())
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(CODES)}
    block.load_state_dict(rest, strict=False)
