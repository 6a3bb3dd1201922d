"""`SteppedCodesQuantizer`: integers that a low-rank update moves by whole steps, on scales that train.

S (clamp(q + round((alpha / rank) B A)) - Z): an update in steps of the integers, so that it ends in them, and scales of
full rank beside it. LoRA's product (Hu et al. 2021, arXiv 2106.09685) added beside a layer has no place in integers;
QA-LoRA's (Xu et al. 2023, arXiv 2309.14717) ends in zero points if these are real numbers; LoTA-QAF (Chen et al. 2025,
arXiv 2505.18724) moves integers by -1, 0 or 1, which is what small updates do here. Scales alone are PEQA's (Kim et al.
2023, arXiv 2305.14152).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgequant.quantization.arithmetic.affine import QuantizedWeight, grouped
from edgequant.quantization.arithmetic.packing import unpack
from edgequant.quantization.layers.frozen_weights import FrozenCodesQuantizer
from edgequant.quantization.scheme import WeightSpec

# Times the learning rate of the training, which suits LoRA beside a layer: a scale is trained as a ratio to its start,
# minima and updates are counted in steps.
RATES = {"relative_scale": 10.0, "minimum_shift": 10.0, "a": 4.0, "b": 4.0}


class SteppedCodesQuantizer(FrozenCodesQuantizer):
    """What a linear's integers [out, in] stand for while they are adapted; at first what they stood for before.

    Trained are A [rank, in] (drawn with unit variance) and B [out, rank] (zero) of the update in steps, each group's
    scale relative to its start, and the real minima of specs that have them (which is QA-LoRA's merge). Integer zero
    points stay: one more or less shifts a whole group by a step, which the update can do weight by weight.

    Args:
        start: integers, scales and zero points of the checkpoint.
        rank: of the update; 0: there is none, and scales train alone.
        alpha: the update's scale is alpha / rank.
    """

    a: nn.Parameter | None
    b: nn.Parameter | None

    def __init__(
        self,
        spec: WeightSpec,
        start: QuantizedWeight,
        features: int,
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(spec, start, features, torch.float32)
        self.a = self.b = None
        self.factor = alpha / rank if rank else 0.0
        if rank:
            device, rows = start.scale.device, start.codes.numel() // features
            drawn = torch.randn(rank, features, generator=generator)
            self.a = nn.Parameter(drawn.to(device))
            self.b = nn.Parameter(torch.zeros(rows, rank, device=device))
        if self.zero_point is not None:
            self.zero_point.requires_grad_(False)
        self._set_rates()

    def _set_rates(self) -> None:
        for name, factor in RATES.items():
            if self._parameters.get(name) is not None:
                self._parameters[name].learning_rate_factor = factor  # type: ignore[union-attr]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_rates()

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """The simulated weight [out, in] of packed codes [out, bytes]; a real weight was simulated already."""
        if weight.is_floating_point() or self.a is None or rows is not None:
            return super().forward(weight, rows)
        grid = self.current_grid()
        lowest = self.spec.integer_range[0]
        zero_point = grid.zero_point if grid.minimum is None else torch.full_like(grid.scale, lowest)
        simulated: Tensor = _Stepped.apply(weight, grid.scale, zero_point, self.a, self.b, self)
        if grid.minimum is not None:
            simulated = (_grouped_like(grid.scale, simulated) + grid.minimum).reshape(simulated.shape)
        return simulated

    @torch.no_grad()
    def codes(self, weight: Tensor) -> QuantizedWeight:
        """The integers as the update has moved them, with scales as trained so far."""
        if self.a is None or self.b is None:
            return super().codes(weight)
        moved, _ = self.moved(weight, self.a, self.b)
        return self.current_grid().quantized(grouped(moved, self.spec))

    def moved(self, packed: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [out, in] after the update, as floats of integral value, and where the range did not cut it off."""
        with torch.autocast(packed.device.type, enabled=False):
            codes = unpack(packed, self.spec.bits, self.features)
            wanted = torch.round(torch.addmm(codes.float(), b.float(), a.float(), alpha=self.factor))
        reached = wanted.clamp(*self.spec.integer_range)
        return reached, reached == wanted


class _Stepped(torch.autograd.Function):
    """Keeps packed codes and the two factors for the backward pass, and computes the weight again from them."""

    @staticmethod
    def forward(
        ctx: Any,
        packed: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        a: Tensor,
        b: Tensor,
        by: SteppedCodesQuantizer,
    ) -> Tensor:
        ctx.save_for_backward(packed, scale, zero_point, a, b)
        ctx.by = by
        steps = _above(_grouped_like(scale, by.moved(packed, a, b)[0]), zero_point)
        return (steps * scale).reshape(b.shape[0], a.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, Tensor, Tensor, None]:
        packed, scale, zero_point, a, b = ctx.saved_tensors
        codes, inside = ctx.by.moved(packed, a, b)
        gradient = _grouped_like(scale, gradients[0].float())
        for_scale = (gradient * _above(_grouped_like(scale, codes), zero_point)).sum(-1, keepdim=True)
        for_update = ctx.by.factor * (gradient * scale).reshape(codes.shape) * inside  # straight through the rounding
        return None, for_scale, None, b.t() @ for_update, for_update @ a.t(), None


def _above(codes: Tensor, zero_point: Tensor | None) -> Tensor:
    return codes if zero_point is None else codes - zero_point


def _grouped_like(scale: Tensor, values: Tensor) -> Tensor:
    """Values [out, in] as [rows, groups, group size] of scales [rows, groups, 1]."""
    return values.reshape(scale.shape[0], scale.shape[1], -1)
