"""Symmetric and ternary schemes through PTQ, QAT and a size budget on `tiny`: every weight on its few levels."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from near_ties import assert_same_linear_by_linear, linear_by_linear

from edgequant.errors import UserError
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare, set_phase
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.layers.targets import find_targets
from edgequant.quantization.mixed_precision.bit_allocation import choose_layer_bits
from edgequant.quantization.mixed_precision.checkpoint_size import checkpoint_sizes
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.qat.ptq_initialization import prepare_from_ptq
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme
from edgequant.quantization.size_budget import parse_size_budget

FAST = PtqSettings(signround_steps=15, alphas=4)
LEVELS = {  # in scales
    "w4-g32-sym": set(range(-8, 8)),
    "w3a8-g64-sym": set(range(-4, 4)),
    "w2-g64-sym": {-1.5, -0.5, 0.5, 1.5},
    "w2a8-static-sym+emb4": {-1.5, -0.5, 0.5, 1.5},
    "w1.58-g64+emb4": {-1, 0, 1},
}
LINEARS = [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.k_proj", "mlp.down_proj")]


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 250, (8, 32), generator=torch.Generator().manual_seed(0))


def assert_on_levels(model, scheme: str) -> None:
    for name in LINEARS:
        packed = model.get_submodule(name).packed
        in_scales = packed.dequantized().view(packed.rows, packed.groups, -1) / packed.scale.float()[..., None]
        found = (2 * in_scales).round() / 2
        assert torch.allclose(found, in_scales, atol=1e-4)
        assert set(found.unique().tolist()) <= LEVELS[scheme]


@pytest.mark.parametrize("scheme", LEVELS)
@pytest.mark.parametrize("method", ["rtn", "mse_clip", "gptq", "awq+gptq", "smoothquant+mse_clip", "gptq+signround"])
def test_every_method_leaves_weights_on_the_levels(_tiny, tokens, scheme, method):
    model = copy.deepcopy(_tiny.model)
    errors = quantize(model, parse_scheme(scheme), calibration=[tokens], method=method, settings=FAST)
    assert_on_levels(model, scheme)
    assert all(0 < row["weight_error"] < 0.5 for row in errors if row["kind"] == "linear")
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=tokens).logits).all()


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["w2-g64", "w2-g64-sym", "w1.58-g64"])
def test_learned_rounding_and_refitted_scales_err_less_than_clipping(_tiny, tokens, scheme):
    def error(method: str, **settings) -> float:
        model = copy.deepcopy(_tiny.model)
        chosen = replace(FAST, **settings)
        rows = quantize(model, parse_scheme(scheme), calibration=[tokens], method=method, settings=chosen)
        return [row["output_error"] for row in rows if row["kind"] == "block"][-1]

    clipped = error("mse_clip")
    assert error("gptq", refit_scales=True) < clipped and error("gptq+signround") < clipped


@pytest.mark.parametrize("method", ["mse_clip", "gptq", "signround"])
@pytest.mark.parametrize("scheme", ["w4-g32-sym+emb4", "w2-g64-sym", "w1.58-g64"])
def test_training_starts_at_exactly_what_ptq_deploys(_tiny, tokens, scheme, method):
    rounded, started = copy.deepcopy(_tiny.model), copy.deepcopy(_tiny.model)
    quantize(rounded, parse_scheme(scheme), calibration=[tokens], method=method, settings=FAST)
    prepare_from_ptq(started, parse_scheme(scheme), method, [tokens], settings=FAST)
    convert(started)
    with torch.no_grad():
        assert torch.equal(started(input_ids=tokens).logits, rounded(input_ids=tokens).logits)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scheme", ["w2-g64", *LEVELS])
def test_the_loss_falls_in_training_and_the_integers_are_what_was_simulated(tiny, tokens, scheme, learned):
    model = tiny.model
    prepare(model, parse_scheme(scheme), learnable_scales=learned)
    if has_static_ranges(model):
        calibrate(model, [tokens])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
    set_phase(model, quantize_inputs=True, observe=False)
    simulated = linear_by_linear(model, tokens)
    convert(model)
    assert_same_linear_by_linear(simulated, model, tokens)
    if scheme in LEVELS:
        assert_on_levels(model, scheme)


def test_a_size_budget_gives_two_symmetric_bits_half_levels(tiny, tokens):
    scheme = parse_scheme("w4-g32-sym")
    low, high = checkpoint_sizes(tiny.model, scheme, find_targets(tiny.model, scheme), (2, 4), "float32").range
    budget = replace(parse_size_budget(f"megabytes={(low + high) / 2e6:.6f}"), candidates=(2, 3, 4))
    chosen = choose_layer_bits(tiny.model, scheme.with_budget(budget), list(tokens), dtype="float32").scheme
    assert 2 in dict(chosen.layer_bits).values()
    quantize(tiny.model, chosen)
    specs = [layer.packed.spec for layer in integer_layers(tiny.model).values()]
    assert all(spec.zero_point == "none" and spec.has_half_levels == (spec.bits == 2) for spec in specs)


def test_pruning_is_refused_where_no_level_is_zero():
    settings = QatSettings(sparsity=0.5)
    with pytest.raises(UserError, match=r"qat.sparsity 0.5 does not fit scheme w2-g64-sym.* either side of 0"):
        settings.check_scheme(parse_scheme("w2-g64-sym"))
    settings.check_scheme(parse_scheme("w1.58-g64"))
