"""Low-rank adapters inside the quantiser: what a layer simulates is Q(W + (alpha / rank) B A).

The update is LoRA's (Hu et al. 2021, arXiv 2106.09685, equation 3). LoRA adds x A B beside a layer, where no integer of
W can represent it; added to W before rounding, as in LR-QAT (Bondarenko et al. 2024, arXiv 2406.06385), it ends in the
integers, and what is deployed has no adapters.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears
from edgequant.quantization.layers.targets import find_targets
from edgequant.quantization.scheme import Scheme


class LowRankUpdate(nn.Module):
    """W to W + (alpha / rank) B A, with A [rank, in] drawn as LoRA does and B [out, rank] zero: at first W itself."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, features = weight.shape
        bound = 1 / math.sqrt(features)  # of the uniform distribution, as nn.Linear's own initial values
        drawn = torch.empty(rank, features).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(drawn.to(weight))
        self.b = nn.Parameter(torch.zeros(rows, rank).to(weight))
        self.factor = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # `convert` merges in float32 too
            return torch.addmm(weight, self.b, self.a, alpha=self.factor)


def check_rank(model: nn.Module, scheme: Scheme, rank: int) -> None:
    """Refuse a rank that saves nothing, before anything is made of a floating-point model.

    Raises:
        UserError: names the layer whose smaller side the rank exceeds.
    """
    for name in find_targets(model, scheme).linears:
        rows, features = cast(nn.Linear, model.get_submodule(name)).weight.shape
        if rank > min(rows, features):
            raise UserError(
                f"qat.lora_rank must be at most {min(rows, features)} for layer {name} [{rows}, {features}], usually "
                f"8 to 64, got {rank}"
            )


def attach(model: nn.Module, scheme: Scheme, rank: int, alpha: float, *, seed: int = 0) -> None:
    """Give every fake-quantised linear of a prepared model an adapter, and freeze what the adapters stand for.

    Weights and biases of linears (the head's too) and embeddings get no gradient; adapters, norms and learned scales
    keep theirs.

    Args:
        model: after `convert.prepare`, on its device.
        rank: of the update, at most the smaller side of every layer.
        alpha: times 1 / rank, scales it.
        seed: draws A.

    Raises:
        UserError: as `check_rank`.
    """
    check_rank(model, scheme, rank)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers = fake_quantized_linears(model)
    for name in find_targets(model, scheme).linears:
        layer = layers[name]
        layer.before_rounding.append(LowRankUpdate(layer.weight, rank, alpha, generator))
