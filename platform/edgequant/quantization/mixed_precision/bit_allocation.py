"""Bits for each layer under a size budget: the least predicted loss whose checkpoint fits, solved exactly.

A multiple-choice knapsack as in HAWQ-V2 (Dong et al. 2019, arXiv 1911.03852, section 3.3) and HAWQ-V3 (Yao et al. 2020,
arXiv 2011.10680, equation 8), its costs those of `sensitivity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.quantization.layers.targets import Targets, find_targets
from edgequant.quantization.mixed_precision.checkpoint_size import CheckpointSizes, checkpoint_sizes
from edgequant.quantization.mixed_precision.sensitivity import fisher_diagonals, loss_increase, weight_of
from edgequant.quantization.scheme import Scheme

Choices = Mapping[str, Mapping[int, float]]
TOLERANCE = 1e-5  # of the largest size, left free: above the solver's own, so that nothing exceeds the capacity


@dataclass(frozen=True)
class Allocation:
    """Bits chosen for a model.

    Attributes:
        scheme: the scheme with its `layer_bits`.
        size: bytes that the checkpoint will have at most.
        rows: one per layer: `layer`, `bits`, `parameters`, `sensitivity` (predicted increase of the loss, nats, at
            these bits), `bytes`, and `sensitivity_<bits>` for every candidate.
        note: what is not as one might expect, or "".
    """

    scheme: Scheme
    size: int
    rows: list[dict[str, Any]]
    note: str = ""


def choose_layer_bits(
    model: nn.Module,
    scheme: Scheme,
    sequences: Sequence[Tensor],
    *,
    dtype: str,
    bfloat16: bool = False,
) -> Allocation:
    """Choose the bits of each layer so that the checkpoint fits the scheme's size budget.

    Args:
        model: floating-point causal language model in evaluation mode; unchanged afterwards.
        scheme: with a budget.
        sequences: token rows [length] whose loss tells layers apart.
        dtype: compute type of the checkpoint, e.g. `bfloat16`: norms and all else unquantised are stored in it.
        bfloat16: compute gradients under autocast.

    Raises:
        UserError: no choice fits the budget; the message says which budgets can be met.
    """
    assert scheme.budget is not None
    targets = find_targets(model, scheme)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    candidates, capacity = scheme.candidate_bits, scheme.budget.bytes_for(parameters)
    sizes = checkpoint_sizes(model, scheme, targets, candidates, dtype)
    _check_attainable(scheme, sizes, parameters)
    fisher = fisher_diagonals(model, targets.weights, sequences, bfloat16=bfloat16)
    losses = {layer: _losses(layer, model, scheme, targets, fisher[layer]) for layer in targets.weights}
    bits = allocate(losses, sizes.layers, capacity - sizes.rest)
    chosen = replace(scheme, layer_bits=tuple((name, bits[targets.weight_of(name)]) for name in targets.names))
    rows = [_row(layer, bits[layer], fisher[layer], losses[layer], sizes.layers[layer]) for layer in targets.weights]
    return Allocation(chosen, sizes.total(bits), rows, _note(scheme, sizes, capacity))


def _losses(layer: str, model: nn.Module, scheme: Scheme, targets: Targets, fisher: Tensor) -> dict[int, float]:
    """Predicted increase of the loss by the layer's bits."""
    base = scheme.weight if layer in targets.linears else scheme.embedding
    assert base is not None
    weight = weight_of(model, layer)
    specs = {bits: base.with_bits(bits).fitting(weight.shape[1]) for bits in scheme.candidate_bits}
    return {bits: loss_increase(weight, fisher, spec) for bits, spec in specs.items()}


def _check_attainable(scheme: Scheme, sizes: CheckpointSizes, parameters: int) -> None:
    assert scheme.budget is not None
    low, high = sizes.range
    if scheme.budget.bytes_for(parameters) < low:
        ends = [scheme.budget.amount_of(size, parameters) for size in (low * (1 + 1e-3), high)]
        raise UserError(
            f"size budget of scheme {scheme.name} cannot be met: with {scheme.candidate_bits[0]} bits in every "
            f"layer the checkpoint is larger; for this model and scheme give {ends[0]} to {ends[1]}, larger groups, or "
            "+emb if the embedding is unquantised"
        )


def _note(scheme: Scheme, sizes: CheckpointSizes, capacity: float) -> str:
    if sizes.range[1] > capacity:
        return ""
    return f"the budget of {scheme.name} is larger than anything: every layer has its most bits"


def _row(
    layer: str, bits: int, fisher: Tensor, losses: Mapping[int, float], sizes: Mapping[int, int]
) -> dict[str, Any]:
    row = {"layer": layer, "bits": bits, "parameters": fisher.numel(), "sensitivity": losses[bits]}
    return row | {"bytes": sizes[bits]} | {f"sensitivity_{candidate}": loss for candidate, loss in losses.items()}


def allocate(losses: Choices, sizes: Choices, capacity: float) -> dict[str, int]:
    """The choice of bits for each layer with the least sum of losses whose sizes sum up to at most `capacity`.

    Args:
        losses, sizes: for each layer, by bits; the same layers and bits in both, in the same order.
        capacity: what the sizes may sum up to; at least the sum of every layer's least.

    Raises:
        ValueError: nothing fits.
    """
    items = [(layer, bits) for layer, by_bits in losses.items() for bits in by_bits]
    cost = np.array([losses[layer][bits] for layer, bits in items])
    weight = np.array([sizes[layer][bits] for layer, bits in items], dtype=float)
    least = sum(min(by_bits.values()) for by_bits in sizes.values())
    if least > capacity:
        raise ValueError(f"no choice of bits fits {capacity:g} bytes: the least takes {least:g}")
    unit = weight.max()  # numbers near 1 are what the solver is exact with
    of_layer = np.repeat(np.arange(len(losses)), [len(by_bits) for by_bits in losses.values()])
    one_each = csr_array((np.ones(len(items)), (of_layer, np.arange(len(items)))))
    found = milp(
        cost / max(cost.max(), np.finfo(float).tiny),
        integrality=np.ones(len(items)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(weight[None] / unit, -np.inf, max(capacity / unit - TOLERANCE, least / unit)),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise RuntimeError(f"HiGHS found no choice of bits, though there is one: {found.message}")
    return {layer: bits for (layer, bits), taken in zip(items, found.x, strict=True) if taken > 0.5}
