"""Magnitude pruning: the smallest weights of every linear become 0 and stay 0 through training, rounding and packing.

Unstructured (Han et al. 2015, arXiv 1506.02626) or two of every four neighbours (Mishra et al. 2021, arXiv 2104.08378,
the pattern that Ampere's sparse tensor cores multiply). Zeros are codes like others: neither the checkpoint nor its
matrix products become smaller by them, unless something that is not part of edgequant makes use of them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.layers.targets import find_targets
from edgequant.quantization.qat.settings import SparsityPattern
from edgequant.quantization.scheme import Scheme

Masks = dict[str, Tensor]


def magnitude_mask(weight: Tensor, sparsity: float, pattern: SparsityPattern) -> Tensor:
    """True where a weight [out, in] is kept: all but the `sparsity` smallest magnitudes, or the 2 largest of every 4.

    Args:
        sparsity: share, 0 to below 1; under pattern 2:4 one half.
        pattern: `unstructured` ranks the whole matrix, `2:4` each four neighbouring inputs.
    """
    magnitude = weight.detach().abs()
    ranked = magnitude.reshape(1, -1) if pattern == "unstructured" else magnitude.reshape(-1, 4)
    pruned = round(sparsity * ranked.shape[1])
    order = ranked.argsort(dim=-1, stable=True)
    mask = torch.ones_like(ranked, dtype=torch.bool).scatter_(-1, order[:, :pruned], False)
    return mask.view(weight.shape)


def check_pattern(model: nn.Module, scheme: Scheme, pattern: SparsityPattern) -> None:
    """Refuse a pattern that does not fit, before anything is made of a floating-point model.

    Raises:
        UserError: names the linear whose inputs do not divide into fours.
    """
    for name in find_targets(model, scheme).linears if pattern == "2:4" else ():
        features = cast(nn.Linear, model.get_submodule(name)).in_features
        if features % 4:
            raise UserError(
                f"qat.sparsity_pattern 2:4 does not fit layer {name}, whose {features} inputs do not divide "
                "into fours; use unstructured"
            )


@torch.no_grad()
def prune(model: nn.Module, scheme: Scheme, sparsity: float, pattern: SparsityPattern = "unstructured") -> Masks:
    """Set the smallest weights of every linear that the scheme quantises to 0, in place; head and embedding stay.

    Args:
        model: floating-point.
        sparsity: share of each linear's weights, 0 to below 1.
        pattern: see `magnitude_mask`.

    Returns:
        What was kept: layer name to mask [out, in], for `attach_masks`.
    """
    masks = {}
    for name in find_targets(model, scheme).linears:
        weight = cast(nn.Linear, model.get_submodule(name)).weight
        masks[name] = magnitude_mask(weight, sparsity, pattern)
        weight.mul_(masks[name])
    return masks


class Mask(nn.Module):
    """W to W with pruned entries at 0, whatever an optimiser or an adapter made of them; they get no gradient."""

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep, persistent=False)  # a resumed run prunes the same model again

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep


def attach_masks(model: nn.Module, masks: Masks) -> None:
    """Keep the pruned entries of a prepared model at 0. Adapters have to be attached before."""
    layers = fake_quantized_linears(model)
    for name, keep in masks.items():
        layers[name].before_rounding.append(Mask(keep))


@torch.no_grad()
def deployed_sparsity(model: nn.Module) -> float:
    """Share of a converted model's linear weights that are exactly 0; a head tied to the embedding does not count."""
    zeros = total = 0
    for layer in integer_layers(model).values():
        if layer.kind == "linear" and not layer.is_tied:
            weight = layer.dequantized_weight()
            zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    return zeros / total if total else 0.0
