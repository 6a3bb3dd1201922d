"""Pruned weights: the smallest ones, as many as asked for, and exactly 0 from the first step to the integers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgequant.errors import UserError
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare, set_phase
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.qat import pruning
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme


@given(rows=st.integers(1, 9), fours=st.integers(1, 9), sparsity=st.floats(0, 0.99), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_the_smallest_weights_of_the_matrix_go(rows, fours, sparsity, seed):
    weight = torch.randn(rows, 4 * fours, generator=torch.Generator().manual_seed(seed))
    keep = pruning.magnitude_mask(weight, sparsity, "unstructured")
    assert int((~keep).sum()) == round(sparsity * weight.numel())
    gone, kept = weight[~keep].abs(), weight[keep].abs()
    assert not len(gone) or not len(kept) or gone.max() <= kept.min()


@given(rows=st.integers(1, 9), fours=st.integers(1, 9), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_two_of_every_four_neighbors_go(rows, fours, seed):
    weight = torch.randn(rows, 4 * fours, generator=torch.Generator().manual_seed(seed))
    weight[0, :4] = 1.0  # ties: still two
    keep = pruning.magnitude_mask(weight, 0.5, "2:4").view(rows, fours, 4)
    assert (keep.sum(-1) == 2).all()
    magnitude = weight.view(rows, fours, 4).abs()
    assert (magnitude.masked_fill(keep, 0).amax(-1) <= magnitude.masked_fill(~keep, torch.inf).amin(-1)).all()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 250, (2, 32), generator=torch.Generator().manual_seed(0))


def test_head_embedding_and_norms_are_not_pruned(tiny):
    before = copy.deepcopy(tiny.model.state_dict())
    masks = pruning.prune(tiny.model, parse_scheme("w4a8-g32+emb4"), 0.3)
    assert len(masks) == 14
    for name, tensor in tiny.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name.removesuffix(".weight") not in masks)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("scheme", ["w4a8-g32+emb4", "w8a8-static", "w2-g16", "w3-g64", "q4_0", "w1.58-g64"])
def test_zeros_stay_zero_through_training_and_rounding(tiny, tokens, scheme, pattern, learned):
    """SGD with weight decay and a large rate: without the mask the entries would come back at once."""
    model, parsed = tiny.model.requires_grad_(True), parse_scheme(scheme)
    masks = pruning.prune(model, parsed, 0.5, pattern)
    prepare(model, parsed, learnable_scales=learned)
    pruning.attach_masks(model, masks)
    if has_static_ranges(model):
        calibrate(model, [tokens])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        for name, keep in masks.items():
            assert not model.get_submodule(name).weight.grad[~keep].any()
        optimizer.step()
    set_phase(model, quantize_inputs=True, observe=False)
    with torch.no_grad():
        simulated = model(input_ids=tokens).logits
        convert(model)
        assert (simulated - model(input_ids=tokens).logits).abs().median() < 1e-5
    for name, keep in masks.items():
        weight = model.get_submodule(name).dequantized_weight()
        assert (weight[~keep] == 0).all() and weight[keep].any()
    assert pruning.deployed_sparsity(model) >= 0.5


def test_the_mask_holds_where_an_optimizer_moves_a_pruned_weight(tiny, tokens):
    model, parsed = tiny.model, parse_scheme("w4-g32")
    masks = pruning.prune(model, parsed, 0.5)
    prepare(model, parsed)
    pruning.attach_masks(model, masks)
    name = "model.layers.0.mlp.up_proj"
    with torch.no_grad():
        model.get_submodule(name).weight.add_(1.0)
    convert(model)
    assert (model.get_submodule(name).dequantized_weight()[~masks[name]] == 0).all()


def test_sparsity_counts_what_is_exactly_zero_in_the_deployed_linears(tiny):
    dense, sparse = copy.deepcopy(tiny.model), tiny.model
    quantize(dense, parse_scheme("w8"))
    pruning.prune(sparse, parse_scheme("w8"), 0.75)
    quantize(sparse, parse_scheme("w8"))
    assert 0.75 <= pruning.deployed_sparsity(sparse) < 0.76
    assert pruning.deployed_sparsity(dense) < 0.05  # rounding alone makes a few


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, r"qat.sparsity must be a share from 0 to below 1, got 1.0"),
        ({"sparsity": -0.1}, r"qat.sparsity must be .* got -0.1"),
        ({"sparsity_pattern": "2:4"}, r"qat.sparsity must be 0.5 with sparsity_pattern 2:4, .* got 0.0"),
        ({"lora_rank": -1}, r"qat.lora_rank must be .* got -1"),
        ({"lora_alpha": 0.0}, r"qat.lora_alpha must be above 0, got 0.0"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        QatSettings(**values)


def test_a_layout_without_an_exact_zero_cannot_be_pruned():
    QatSettings(sparsity=0.5).check_scheme(parse_scheme("q4_0"))
    with pytest.raises(UserError, match=r"sparsity 0.5 does not fit scheme q4_1.*use q4_0"):
        QatSettings(sparsity=0.5).check_scheme(parse_scheme("q4_1"))


def test_fours_that_do_not_divide_are_refused_by_the_layers_name(tiny):
    tiny.model.model.layers[1].mlp.up_proj = torch.nn.Linear(126, 512)
    pruning.check_pattern(tiny.model, parse_scheme("w8"), "unstructured")
    with pytest.raises(UserError, match=r"2:4 does not fit layer model.layers.1.mlp.up_proj, whose 126 inputs"):
        pruning.check_pattern(tiny.model, parse_scheme("w8"), "2:4")
