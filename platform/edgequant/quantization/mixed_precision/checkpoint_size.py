"""How large a checkpoint will be before anything is quantised: its layers are built on the meta device and counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from edgequant import models
from edgequant.quantization.checkpoint import unique_state
from edgequant.quantization.layers.convert import build_integer_layers
from edgequant.quantization.layers.targets import Targets
from edgequant.quantization.scheme import Scheme

FRAME = 128  # bytes of a safetensors file beside tensors and their entries: lengths, braces, metadata, alignment


@dataclass(frozen=True)
class CheckpointSizes:
    """Bytes of a weight file. `layers`: of each layer by its bits; `rest`: of all that no choice of bits changes."""

    rest: int
    layers: dict[str, dict[int, int]]

    def total(self, bits: dict[str, int]) -> int:
        """Bytes of the file when each layer has so many bits."""
        return self.rest + sum(by_bits[bits[layer]] for layer, by_bits in self.layers.items())

    @property
    def range(self) -> tuple[int, int]:
        """Bytes with the fewest and with the most bits everywhere."""
        ends = [(min(by_bits.values()), max(by_bits.values())) for by_bits in self.layers.values()]
        return self.rest + sum(low for low, _ in ends), self.rest + sum(high for _, high in ends)


def checkpoint_sizes(
    model: nn.Module, scheme: Scheme, targets: Targets, candidates: Sequence[int], dtype: str
) -> CheckpointSizes:
    """Sizes of the file that `checkpoint.save` would write, for every layer and number of bits.

    Integers, scales, zero points, norms, biases, an unquantised embedding, tied weights once, and the file's header,
    which is bounded from above by some bytes per tensor.

    Args:
        model: the floating-point model.
        scheme: what is quantised; its own bits do not matter.
        targets: the layers that it quantises in this model.
        candidates: bits.
        dtype: compute type of the checkpoint, which everything unquantised is stored in.
    """
    layers: dict[str, dict[int, int]] = {name: {} for name in targets.weights}
    rest = 0
    for bits in candidates:
        everywhere = replace(scheme, layer_bits=tuple((name, bits) for name in targets.names))
        skeleton: Any = _on_meta(model)
        build_integer_layers(skeleton, everywhere)
        models.cast(skeleton, dtype)
        stored = {name: _bytes(name, tensor) for name, tensor in unique_state(skeleton).items()}
        owners = {name: _owner(name, layers) for name in stored}
        for layer in layers:
            layers[layer][bits] = sum(size for name, size in stored.items() if owners[name] == layer)
        rest = sum(size for name, size in stored.items() if owners[name] is None)
    return CheckpointSizes(FRAME + rest, layers)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without values; what was tied stays tied."""
    parameters = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, dict(parameters))  # type: ignore[arg-type]  # deepcopy takes these as copied already


def _owner(name: str, layers: dict[str, dict[int, int]]) -> str | None:
    """The layer that a tensor `layer.packed_weight.codes` belongs to; None: to none whose bits vary."""
    layer, inside, _ = name.rpartition(".packed_weight.")
    return layer if inside and layer in layers else None


def _bytes(name: str, tensor: Tensor) -> int:
    """A tensor's data and its entry in the header, with the longest offsets there can be."""
    entry = {name: {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [10**11, 10**11]}}
    return tensor.numel() * tensor.element_size() + len(json.dumps(entry, separators=(",", ":")))
