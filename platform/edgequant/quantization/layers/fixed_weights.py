"""Weight quantisers that PTQ puts into fake-quantised layers: none yet, or integers that are already fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgequant.quantization.arithmetic.affine import QuantizedWeight, dequantize_weight, quantize_weight
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLayer
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.scheme import WeightSpec


class IdentityQuantizer(WeightQuantizer):
    """Leaves a weight as it is until its integers are chosen; converted as it stands, it is rounded to nearest."""

    def __init__(self, spec: WeightSpec) -> None:
        super().__init__(spec, torch.empty(0), learned=False)

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        return weight

    def quantized(self, weight: Tensor) -> QuantizedWeight:
        return quantize_weight(weight.detach(), self.spec)


class FixedCodesQuantizer(WeightQuantizer):
    """Stands for a weight by integers fixed beforehand, whatever the weight is; `convert` takes exactly these."""

    def __init__(self, spec: WeightSpec, fixed: QuantizedWeight) -> None:
        super().__init__(spec, torch.empty(0), learned=False)
        self.fixed = fixed

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        chosen = self.fixed
        if rows is not None and chosen.scale.shape[0] > 1:
            chosen = QuantizedWeight(*(None if part is None else part[rows] for part in chosen))  # type: ignore[arg-type]
        elif rows is not None:  # one scale for the tensor
            width = weight.shape[1]
            chosen = chosen._replace(codes=chosen.codes.view(-1, width)[rows].view(1, 1, -1))
        return dequantize_weight(chosen, weight.shape).to(weight.dtype)

    def quantized(self, weight: Tensor) -> QuantizedWeight:
        return self.fixed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """The integers go where the model goes; their types stay."""
        parts = (None if part is None else part.to(fn(part.new_empty(0)).device) for part in self.fixed)
        self.fixed = QuantizedWeight(*parts)  # type: ignore[arg-type]
        return super()._apply(fn, recurse)


def awaits_integers(layer: FakeQuantizedLayer) -> bool:
    """Whether a layer simulates nothing yet."""
    return isinstance(layer.quantizer, IdentityQuantizer)


def fix_codes(layer: FakeQuantizedLayer, quantized: QuantizedWeight) -> None:
    """Fix a layer's integers."""
    layer.quantizer = FixedCodesQuantizer(layer.spec, quantized)


def fixed_codes_of(layer: FakeQuantizedLayer) -> QuantizedWeight | None:
    """The integers fixed for a layer, or None."""
    quantizer = layer.quantizer
    return quantizer.fixed if isinstance(quantizer, FixedCodesQuantizer) else None
