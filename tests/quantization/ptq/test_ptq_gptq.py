"""GPTQ against an independent implementation that solves for the remaining weights anew after every column."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.affine import dequantize_weight
from edgequant.quantization.arithmetic.grids import Grid
from edgequant.quantization.arithmetic.range_search import choose_grid
from edgequant.quantization.ptq.gptq import elimination_by, quantize_sharing_input, refit_scales, round_columns
from edgequant.quantization.ptq.second_moments import SecondMomentSum
from edgequant.quantization.scheme import parse_scheme

RANGE = (-4, 3)
Q4_0 = parse_scheme("q4_0").weight


def case(rows: int = 6, features: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the mean x x^T of correlated inputs, wider than one block of columns."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features, features, generator=generator) / features**0.5
    inputs = torch.randn(1000, features, generator=generator) @ (mixing + 0.5 * torch.eye(features))
    return torch.randn(rows, features, generator=generator), inputs.t() @ inputs / 1000


def optimal_brain_quantizer(weight: np.ndarray, hessian: np.ndarray, scale: float, order: np.ndarray) -> np.ndarray:
    """Round one column, then the other free columns solve least squares for what it did (Hassibi & Stork's update)."""
    weight, codes = weight.copy(), np.zeros_like(weight)
    free = list(order)
    while free:
        column, rest = free[0], free[1:]
        codes[:, column] = np.clip(np.round(weight[:, column] / scale), *RANGE)
        error = codes[:, column] * scale - weight[:, column]
        if rest:
            # argmin over d of (e, d) H (e, d)^T: d = -e H[column, rest] H[rest, rest]^-1
            weight[:, rest] -= error[:, None] * np.linalg.solve(hessian[np.ix_(rest, rest)], hessian[rest, column])
        free = rest
    return codes


@pytest.mark.parametrize("act_order", [False, True])
def test_codes_are_those_of_solving_anew_after_every_column(act_order):
    weight, hessian = case()
    scale = torch.full_like(weight, 0.5)
    found = round_columns(weight, elimination_by(hessian, act_order=act_order), scale, scale * 0, RANGE)
    damped = hessian.double().numpy() + 0.01 * hessian.diagonal().double().mean().item() * np.eye(len(hessian))
    order = np.argsort(-hessian.diagonal().numpy(), kind="stable") if act_order else np.arange(len(hessian))
    expected = optimal_brain_quantizer(weight.double().numpy(), damped, 0.5, order)
    assert (found.codes.numpy() == expected).mean() > 0.995  # float32 ties apart


def test_uncorrelated_inputs_leave_round_to_nearest():
    weight, _ = case()
    scale, offset = torch.full_like(weight, 0.3), torch.full_like(weight, 0.1)
    found = round_columns(weight, elimination_by(torch.eye(160)), scale, offset, RANGE)
    assert torch.equal(found.codes, torch.round((weight - 0.1) / 0.3).clamp(*RANGE))


def test_silent_inputs_do_not_disturb_the_others():
    weight, hessian = case()
    hessian[:, 7] = hessian[7, :] = 0
    scale = torch.full_like(weight, 0.5)
    found = round_columns(weight, elimination_by(hessian), scale, scale * 0, RANGE)
    assert torch.equal(found.codes[:, 7], torch.round(weight[:, 7] / 0.5).clamp(*RANGE))


def output_error(weight, quantized, hessian) -> float:
    difference = dequantize_weight(quantized, weight.shape) - weight
    return float(((difference @ hessian) * difference).sum())


@pytest.mark.parametrize("scheme", ["w3-g32", "w4-g32", "w3", "w4", "q4_0", "q4_1", "q8_0"])
def test_outputs_err_less_than_on_the_same_grid_rounded_to_nearest(scheme):
    weight, hessian = case(16)
    spec = parse_scheme(scheme).weight
    grid = choose_grid(weight, spec, hessian.diagonal())
    nearest = grid.quantized(grid.codes(weight.view(*grid.scale.shape[:2], -1)))
    (plain,) = quantize_sharing_input([weight], hessian, [grid], dampening_frac=0.01, act_order=True, refit=False)
    (refitted,) = quantize_sharing_input([weight], hessian, [grid], dampening_frac=0.01, act_order=True, refit=True)
    assert output_error(weight, plain.quantized, hessian) < output_error(weight, nearest, hessian)
    assert output_error(weight, refitted.quantized, hessian) <= output_error(weight, plain.quantized, hessian)


def test_layers_that_share_an_input_are_quantized_as_if_alone():
    weight, hessian = case(16)
    spec = parse_scheme("w4-g32").weight
    parts = [weight[:4], weight[4:]]
    grids = [choose_grid(part, spec) for part in parts]
    options = {"dampening_frac": 0.01, "act_order": True, "refit": False}
    together = quantize_sharing_input(parts, hessian, grids, **options)
    for part, grid, found in zip(parts, grids, together, strict=True):
        (alone,) = quantize_sharing_input([part], hessian, [grid], **options)
        assert (alone.quantized.codes != found.quantized.codes).float().mean() < 0.005  # float32 ties


def test_refitted_scales_solve_the_normal_equations():
    """Against NumPy's least squares on inputs whose mean x x^T is the Hessian."""
    weight, hessian = case(1, 64)
    spec = parse_scheme("w3-g32").weight
    spec = type(spec)(bits=3, zero_point="none", granularity="group", group_size=32)
    grid = Grid(spec, torch.full((1, 2, 1), 0.8))
    codes = grid.codes(weight.view(1, 2, 32))
    root = np.linalg.cholesky(hessian.double().numpy() + 1e-3 * hessian.diagonal().mean().item() * np.eye(64)).T
    columns = np.zeros((64, 2))
    columns[:32, 0], columns[32:, 1] = codes[0, 0].numpy(), codes[0, 1].numpy()
    expected, *_ = np.linalg.lstsq(root @ columns, root @ weight[0].double().numpy(), rcond=None)
    found = refit_scales(weight, hessian, codes, grid).scale.flatten().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_the_factor_is_that_of_the_damped_inverse():
    inputs = torch.randn(400, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 96)
    hessian = (inputs.t() @ inputs / len(inputs)).double()
    factor = elimination_by(hessian, act_order=False).factor
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(96)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.t() @ factor @ damped, torch.eye(96, dtype=torch.float64), atol=1e-8)


def test_a_hessian_that_is_no_number_is_refused():
    _, hessian = case()
    with pytest.raises(UserError, match="more calibration text"):
        elimination_by(hessian * torch.nan)


def test_of_few_tokens_shrunk_correlations_leave_less_error_on_others():
    """Inputs with one strong correlation and many by chance: 64 tokens of 96 features, judged on 20,000 others."""
    generator = torch.Generator().manual_seed(0)
    errors = {0.0: 0.0, None: 0.0}
    for _ in range(4):
        mixing = torch.eye(96)
        mixing[0, 1] = 0.9
        seen, unseen = (torch.randn(n, 96, generator=generator) @ mixing for n in (64, 20_000))
        weight = torch.randn(48, 96, generator=generator)
        total, true = SecondMomentSum(), unseen.t() @ unseen / len(unseen)
        total.add(seen)
        grid = choose_grid(weight, Q4_0)
        for doubt in errors:
            options = {"dampening_frac": 0.01, "act_order": True, "refit": False}
            (found,) = quantize_sharing_input([weight.clone()], total.moment().without_chance(doubt), [grid], **options)
            wrong = dequantize_weight(found.quantized, weight.shape) - weight
            errors[doubt] += float(((wrong @ true) * wrong).sum())
    assert errors[None] < 0.7 * errors[0.0]
