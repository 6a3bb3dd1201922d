"""`smoothquant`: outliers move from activations into weights, so that both quantise well.

Xiao et al. 2022, arXiv 2211.10438.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgequant.quantization.calibrated_block import CalibratedBlock
from edgequant.quantization.folding import find_folds


class Smoothing:
    """s = max|x|^alpha / max|w|^(1 - alpha) per input feature (equation 4), for every input that can be scaled."""

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = alpha

    @torch.no_grad()
    def apply(self, block: CalibratedBlock) -> None:
        folds = find_folds(block)
        largest: dict[str, Tensor] = {}

        def add(name: str, inputs: Tensor) -> None:
            seen = inputs.abs().amax(0)
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        block.watch([group.names[0] for group, _ in folds], add)
        for group, fold in folds:
            weights = torch.stack([block.layers[name].weight.abs().amax(0).float() for name in group.names])
            inputs = fold.gather(largest[group.names[0]]).clamp(min=1e-5)
            scale = inputs**self.alpha / fold.gather(weights.amax(0)).clamp(min=1e-5) ** (1 - self.alpha)
            fold.apply(block, scale.clamp(min=1e-5))
