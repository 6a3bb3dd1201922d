"""Weights whose integers are fixed while their scales and zero points train: codes are kept packed, nothing else is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgequant.quantization.arithmetic.affine import QuantizedWeight, dequantize, grouped
from edgequant.quantization.arithmetic.packing import pack, unpack
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.scheme import WeightSpec


class FrozenCodesQuantizer(WeightQuantizer):
    """S (q - Z) of packed integers q; gradients reach S and Z alone (EfficientQAT's end-to-end phase, Chen et al. 2024,
    arXiv 2407.11062, section 3.3, which trains S).

    Its `weight` is the packed codes [out, bytes], uint8 (int8 at 8 bits): bits / 8 bytes a weight instead of the 16 of
    a float32 weight with its gradient and AdamW's two averages.

    Args:
        start: integers, and the scales and zero points that training starts from.
        features: of the layer's input, [in].
        dtype: of the weight that the codes stand for.
    """

    def __init__(self, spec: WeightSpec, start: QuantizedWeight, features: int, dtype: torch.dtype) -> None:
        super().__init__(spec, torch.empty(0), learned=True, start=start)
        self.features, self.dtype = features, dtype

    def packed_codes(self, start: QuantizedWeight) -> Tensor:
        """The codes as `forward` takes them, [out, bytes]."""
        return pack(start.codes.reshape(-1, self.features), self.spec.bits)

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """The simulated weight [out, in] of packed codes [out, bytes]; `rows` [n] says which rows of the whole.

        A floating-point weight is what codes were simulated as, and stays.
        """
        if weight.is_floating_point():
            return weight
        grid = self.current_grid() if rows is None else self.current_grid().of_rows(rows)
        zero_point = grid.zero_point
        if grid.minimum is not None:
            zero_point = torch.full_like(grid.scale, self.spec.integer_range[0])
        simulated: Tensor = _Dequantized.apply(weight, grid.scale, zero_point, self.spec.bits, self.features)
        if grid.minimum is not None:
            simulated = (_grouped_like(grid.scale, simulated) + grid.minimum).reshape(simulated.shape)
        return simulated.to(self.dtype)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> QuantizedWeight:
        """The integers of packed codes, with scales and zero points as trained so far."""
        return self.current_grid().quantized(grouped(unpack(weight, self.spec.bits, self.features), self.spec))


class _Dequantized(torch.autograd.Function):
    """Keeps the packed codes for the backward pass instead of a float32 weight."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, features: int) -> Tensor:
        ctx.save_for_backward(packed, scale, zero_point)
        ctx.bits, ctx.features = bits, features
        codes = unpack(packed, bits, features)
        return dequantize(_grouped_like(scale, codes), scale, zero_point).reshape(codes.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor | None, None, None]:
        packed, scale, zero_point = ctx.saved_tensors
        gradient = _grouped_like(scale, gradients[0].float())
        steps = _grouped_like(scale, unpack(packed, ctx.bits, ctx.features).float())
        steps = steps if zero_point is None else steps - zero_point
        for_zero = None if zero_point is None else gradient.sum(-1, keepdim=True) * -scale
        return None, (gradient * steps).sum(-1, keepdim=True), for_zero, None, None


def _grouped_like(scale: Tensor, values: Tensor) -> Tensor:
    """Values [out, in] as [rows, groups, group size] of scales [rows, groups, 1]."""
    return values.reshape(scale.shape[0], scale.shape[1], -1)
