"""Adapters and pruning on the methodology's four architectures, tied and untied: trained in, deployed in."""

from __future__ import annotations

import copy

import pytest
import torch
from near_ties import assert_same_linear_by_linear, linear_by_linear
from random_architectures import KINDS, LINEARS_PER_LAYER, make

from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.qat import low_rank, pruning
from edgequant.quantization.scheme import parse_scheme


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scheme", "learned"), [("w4a8-g32+emb4", True), ("w8a8-static", False)])
def test_adapters_on_a_pruned_model_end_in_its_integers(kind, tied, scheme, learned):
    tokens = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1))
    model, parsed = make(kind, tied).requires_grad_(True), parse_scheme(scheme)
    masks = pruning.prune(model, parsed, 0.5, "2:4")
    before = copy.deepcopy({name: p for name, p in model.named_parameters() if "norm" not in name})
    prepare(model, parsed, learnable_scales=learned)
    low_rank.attach(model, parsed, 4, alpha=8.0)
    pruning.attach_masks(model, masks)
    if has_static_ranges(model):
        calibrate(model, [tokens])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
    updates = [module for module in model.modules() if isinstance(module, low_rank.LowRankUpdate)]
    assert len(updates) == len(masks) == 2 * LINEARS_PER_LAYER[kind] and all(update.b.any() for update in updates)
    simulated = linear_by_linear(model, tokens)
    convert(model)
    assert_same_linear_by_linear(simulated, model, tokens)
    assert all((model.get_submodule(n).dequantized_weight()[~keep] == 0).all() for n, keep in masks.items())
