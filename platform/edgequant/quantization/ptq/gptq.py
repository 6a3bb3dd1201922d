"""`gptq`: rounding column by column, the columns behind making up for the error.

Frantar et al. 2022, arXiv 2210.17323.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.affine import QuantizedWeight
from edgequant.quantization.arithmetic.grids import Grid

COLUMNS = 128  # per block: errors reach the columns behind it once, as one matrix product (section 3.3, step 2)
DAMPENING_MULTIPLES = (1, 10, 100)  # multiples of it tried until the Hessian factorises
REFITS = 2
ROWS = 1 << 16  # rounded at once: rows do not depend on each other, and a vocabulary has many
REFIT_CHUNK = 1 << 26  # numbers held at once while scales are refitted


class Rounded(NamedTuple):
    """Codes [rows, in], and the weights [rows, in] as they stood, errors of earlier columns made up, when rounded."""

    codes: Tensor
    compensated: Tensor


class Elimination(NamedTuple):
    """In which order columns are rounded, and how much of each one's error the columns behind it make up for.

    Attributes:
        order, back: [in], into that order and out of it again; None: from the first column to the last.
        factor: upper Cholesky factor [in, in] of the damped Hessian's inverse, in that order (section 3.3, step 3).
    """

    order: Tensor | None
    back: Tensor | None
    factor: Tensor


def elimination_by(hessian: Tensor, *, dampening_frac: float = 0.01, act_order: float = True) -> Elimination:
    """What a Hessian says of the columns.

    Args:
        hessian: [in, in], the mean of x x^T over the calibration inputs.
        dampening_frac: share of the mean diagonal that is added to it.
        act_order: largest inputs first.

    Raises:
        UserError: the Hessian is not finite or cannot be factorised.
    """
    if not act_order:
        return Elimination(None, None, _inverse_factor(hessian, dampening_frac))
    order = torch.argsort(hessian.diagonal(), descending=True)
    return Elimination(order, torch.argsort(order), _inverse_factor(hessian[order][:, order], dampening_frac))


@torch.no_grad()
def round_columns(
    weight: Tensor, elimination: Elimination, scale: Tensor, offset: Tensor, integer_range: tuple[int, int]
) -> Rounded:
    """Choose the codes of a weight that minimise the error of its output, tr((W - Q) H (W - Q)^T), greedily.

    Args:
        weight: [rows, in] float32; layers that share their input can be stacked.
        scale, offset: [rows, in]: code c of a column stands for scale * c + offset.
    """
    order, back, factor = elimination
    if order is not None:
        weight, scale, offset = weight[:, order], scale[:, order], offset[:, order]
    factor = factor.to(weight.dtype)
    codes, compensated = _blocks(weight.t().contiguous(), factor, scale.t(), offset.t(), integer_range)
    if back is not None:
        codes, compensated = codes[back], compensated[back]
    return Rounded(codes.t(), compensated.t())


def _inverse_factor(hessian: Tensor, dampening_frac: float) -> Tensor:
    """Upper Cholesky factor U of the damped Hessian's inverse, U^T U, in float64.

    From H = R R^T with R upper triangular, which is Cholesky's with rows and columns in reverse: U is R^-1, so the
    inverse itself is not needed.
    """
    hessian = hessian.double()
    diagonal = hessian.diagonal()
    silent = diagonal == 0  # inputs that never fire: their columns neither pass errors on nor receive any
    mean = diagonal[~silent].mean() if (~silent).any() else torch.ones((), dtype=torch.float64)
    for multiple in DAMPENING_MULTIPLES:
        damped = hessian + torch.diag(silent * mean + dampening_frac * multiple * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if failed:
            continue
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
        if bool(torch.isfinite(upper).all()):
            return upper
    raise UserError("its Hessian is not positive definite; use more calibration text or a larger ptq.dampening_frac")


def _blocks(
    weight: Tensor, factor: Tensor, scale: Tensor, offset: Tensor, integer_range: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """All tensors transposed, [in, rows], so that a column of the weight lies in one piece of memory."""
    scale, offset, inverse = scale.contiguous(), offset.contiguous(), 1 / scale.contiguous()
    codes, compensated = torch.empty_like(weight), torch.empty_like(weight)
    diagonal = factor.diagonal().tolist()
    for start in range(0, len(weight), COLUMNS):
        end = min(start + COLUMNS, len(weight))
        errors = torch.empty_like(weight[start:end])
        for column in range(start, end):
            values = weight[column]
            compensated[column] = values
            code = torch.round((values - offset[column]) * inverse[column]).clamp_(*integer_range)
            codes[column] = code
            error = torch.addcmul(offset[column], code, scale[column]).sub_(values).div_(-diagonal[column])
            errors[column - start] = error
            weight[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
        weight[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    return codes, compensated


@torch.no_grad()
def refit_scales(weight: Tensor, hessian: Tensor, codes: Tensor, grid: Grid) -> Grid:
    """For given codes, the scales of a row's groups that together minimise its output error (weighted least squares).

    min over s of (w - B s)^T H (w - B s), column g of B holding the codes' distances from zero in group g.

    Args:
        weight: [rows, in] float32.
        codes: [rows, groups, group size].
    """
    lowest = grid.spec.integer_range[0]
    steps = codes - (lowest if grid.minimum is not None else 0.0 if grid.zero_point is None else grid.zero_point)
    aim = weight.view_as(steps) if grid.minimum is None else weight.view_as(steps) - grid.minimum
    groups = steps.shape[1]
    metric = hessian.float() + 1e-3 * hessian.float().diagonal().mean() * torch.eye(len(hessian), device=weight.device)
    chunk = max(1, REFIT_CHUNK // (groups * len(hessian)))
    pairs = zip(steps.split(chunk), aim.split(chunk), grid.scale.split(chunk), strict=True)
    scale = torch.cat([_solve(part, target, old, metric) for part, target, old in pairs])
    accepted = (scale / grid.scale - 1).abs() < 0.5  # an ill-determined group keeps the scale that it had
    return grid.with_scale(torch.where(accepted, scale, grid.scale))


def _solve(steps: Tensor, aim: Tensor, old: Tensor, metric: Tensor) -> Tensor:
    rows, groups, size = steps.shape
    lines = metric.view(groups, size, -1)
    weighed = torch.einsum("rgn,gnf->rgf", steps, lines)  # B^T H, [rows, groups, in]
    normal = torch.einsum("rgkn,rkn->rgk", weighed.view(rows, groups, groups, size), steps)
    right = torch.einsum("rgf,rf->rg", weighed, aim.reshape(rows, -1))
    ridge = 1e-4 * normal.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-20  # towards the scales that are there
    normal = normal + torch.diag_embed(ridge[:, None].expand(rows, groups))
    solved, _ = torch.linalg.solve_ex(normal, (right + ridge[:, None] * old[..., 0])[..., None])
    return torch.nan_to_num(solved, nan=0.0)


def output_error(difference: Tensor, hessian: Tensor) -> float:
    """Mean squared error of a layer's output for a weight error [rows, in]: tr(D H D^T) / rows."""
    return float(((difference @ hessian.to(difference.dtype)) * difference).sum() / len(difference))


class Chosen(NamedTuple):
    """A layer's integers and the compensated weight [out, in] that they were rounded from."""

    quantized: QuantizedWeight
    compensated: Tensor


def quantize_sharing_input(
    weights: list[Tensor], hessian: Tensor, grids: list[Grid], *, dampening_frac: float, act_order: bool, refit: bool
) -> list[Chosen]:
    """GPTQ of layers [out, in] that share their input, stacked into one, each on its own grid.

    With `refit` the scales are solved for anew and the columns rounded once more, twice; each layer keeps its best.
    """
    best: list[tuple[float, Chosen]] = []
    elimination = elimination_by(hessian, dampening_frac=dampening_frac, act_order=act_order)
    for _ in range(1 + REFITS * refit):
        rounded = _round_stacked(weights, elimination, grids)
        codes = [found.codes.reshape(*grid.scale.shape[:2], -1) for found, grid in zip(rounded, grids, strict=True)]
        tried = [grids]
        if refit:
            grids = [_refitted(*layer, hessian) for layer in zip(weights, codes, grids, strict=True)]
            tried.append(grids)
        for candidates in tried:
            offers = [_offer(*layer, hessian) for layer in zip(weights, codes, candidates, rounded, strict=True)]
            best = [min(pair, key=_error) for pair in zip(best, offers, strict=True)] if best else offers
    return [chosen for _, chosen in best]


def _error(offer: tuple[float, Chosen]) -> float:
    return offer[0]


def _offer(weight: Tensor, codes: Tensor, grid: Grid, rounded: Rounded, hessian: Tensor) -> tuple[float, Chosen]:
    error = output_error(grid.values(codes).view_as(weight) - weight, hessian)
    return error, Chosen(grid.quantized(codes), rounded.compensated)


def _refitted(weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor) -> Grid:
    return grid if grid.spec.granularity == "tensor" else refit_scales(weight, hessian, codes, grid)


def _round_stacked(weights: list[Tensor], elimination: Elimination, grids: list[Grid]) -> list[Rounded]:
    rows, features = [len(weight) for weight in weights], weights[0].shape[1]

    def stacked(values: list[Tensor]) -> Tensor:
        spread = [grid.columns(value, features) for grid, value in zip(grids, values, strict=True)]
        return torch.cat([part.expand(count, -1) for part, count in zip(spread, rows, strict=True)])

    scale, offset = stacked([grid.scale for grid in grids]), stacked([grid.offset for grid in grids])
    parts = zip(*(values.split(ROWS) for values in (torch.cat(weights), scale, offset)), strict=True)
    found = [round_columns(w, elimination, s, o, grids[0].spec.integer_range) for w, s, o in parts]
    codes, compensated = torch.cat([part.codes for part in found]), torch.cat([part.compensated for part in found])
    return [Rounded(*pair) for pair in zip(codes.split(rows), compensated.split(rows), strict=True)]
