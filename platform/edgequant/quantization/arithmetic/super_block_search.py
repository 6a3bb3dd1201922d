"""The scales and minima of K-quants with the least squared rounding error, weighted by the inputs where known.

Group by group first, as if every scale were free: ranges a little shorter or longer than the group's, for the codes of
each the scale and minimum that fit best. Then as they are stored: the float16 factors of a super-block are fitted to
its codes, and each group's integers try their neighbors. A step is kept in the super-blocks that err less with it.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from edgequant.quantization.arithmetic import ggml
from edgequant.quantization.arithmetic.grids import Grid, stored, stored_minimum
from edgequant.quantization.arithmetic.super_blocks import Factors, minimum_factors, scale_factors
from edgequant.quantization.weight_spec import SUPER_BLOCK, WeightSpec

# Steps by which a group's range is longer than its codes reach: below 0 its ends are out of use, above 0 clipped.
Q4_STEPS = [*torch.linspace(-1.0, 3.0, 17, device="cpu").tolist(), 4.0, 6.0, 9.0]
Q6_STEPS = [*torch.linspace(-2.0, 6.0, 33, device="cpu").tolist(), 8.0, 11.0, 15.0, 20.0]
REFITS = 2  # rounded once more on the best line, and fitted anew
ROUNDS = 2
_TINY = torch.finfo(torch.float32).tiny


def super_block_grid(groups: Tensor, spec: WeightSpec, importance: Tensor | None = None) -> Grid:
    """Search, super-block by super-block, for the grid with the least (weighted) squared rounding error.

    Never worse than round to nearest, since that is where it starts.

    Args:
        groups: [rows, groups, group size] float32.
        spec: a K-quant.
        importance: weights of the squared errors, broadcastable to `groups`; None: all equal.
    """
    best = _Best(groups, spec, torch.ones_like(groups[:1]) if importance is None else importance)
    best.offer(*(_affine_fit(best) if spec.zero_point == "real" else _symmetric_fit(best)))
    for _ in range(ROUNDS):
        best.offer(*_fitted_factors(best))
        best.offer(*_neighbors(best))
    return best.grid


class _Best:
    """The best so far: `scale` and, for q4_k, `minimum`, [rows, groups, 1], as stored."""

    def __init__(self, groups: Tensor, spec: WeightSpec, importance: Tensor) -> None:
        self.groups, self.spec, self.importance = groups, spec, importance
        _, scale, minimum = ggml.quantize(groups, spec.layout)
        self.grid = Grid(spec, scale, minimum=minimum)
        self.error = self._of_super_blocks(self.errors(self.grid))

    def errors(self, grid: Grid) -> Tensor:
        """Of each group, with its nearest codes: [rows, groups, 1]."""
        codes = grid.codes(self.groups)
        return torch.addcmul(grid.offset - self.groups, codes, grid.scale).square_().mul_(self.importance).sum(-1, True)

    def offer(self, scale: Tensor, minimum: Tensor | None) -> None:
        scale = stored(scale, self.spec)
        minimum = None if minimum is None else stored_minimum(minimum, self.spec)
        error = self._of_super_blocks(self.errors(Grid(self.spec, scale, minimum=minimum)))
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        taken = better.repeat_interleave(SUPER_BLOCK // self.groups.shape[-1], dim=1)
        scale = torch.where(taken, scale, self.grid.scale)
        if minimum is not None and self.grid.minimum is not None:
            minimum = torch.where(taken, minimum, self.grid.minimum)
        self.grid = Grid(self.spec, scale, minimum=minimum)

    def _of_super_blocks(self, of_groups: Tensor) -> Tensor:
        return of_groups.view(len(of_groups), -1, SUPER_BLOCK // self.groups.shape[-1]).sum(-1, keepdim=True)


def _affine_fit(best: _Best) -> tuple[Tensor, Tensor]:
    """Scale and minimum of each group by least squares, as if both were free but for the minimum's sign."""
    groups, weights = best.groups, best.importance
    low = groups.amin(-1, keepdim=True).clamp(max=0.0)
    reach = (groups.amax(-1, keepdim=True) - low).clamp(min=_TINY)
    total, first = weights.sum(-1, keepdim=True), (weights * groups).sum(-1, keepdim=True)
    scale, minimum, least = reach / 15, low, torch.full_like(low, torch.inf)
    for step in (*Q4_STEPS, *(None,) * REFITS):
        start_of, inverse = (low, (15 + step) / reach) if step is not None else (minimum, 1 / scale)
        codes = torch.round((groups - start_of) * inverse).clamp_(0, 15)
        weighed = codes * weights
        sums = [(weighed * other).sum(-1, keepdim=True) for other in (codes, groups)]
        square, mixed, codes_sum = *sums, weighed.sum(-1, keepdim=True)
        slope, start = _line(total, codes_sum, square, first, mixed)
        error = torch.addcmul(start - groups, codes, slope).square_().mul_(weights).sum(-1, keepdim=True)
        better = (error < least) & (slope > 0)
        least = torch.where(better, error, least)
        scale, minimum = torch.where(better, slope, scale), torch.where(better, start, minimum)
    return scale, minimum


def _line(total: Tensor, codes: Tensor, squares: Tensor, first: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and start, at most 0, of the weighted least-squares line through groups over codes, from sums."""
    spread = total * squares - codes * codes
    slope = (total * mixed - first * codes) / spread
    start = (squares * first - codes * mixed) / spread
    above = start > 0
    return torch.where(above, mixed / squares, slope), start.masked_fill(above, 0.0)


def _symmetric_fit(best: _Best) -> tuple[Tensor, None]:
    """The scale of each group by least squares, as if it were free; its largest number is on the longer side."""
    groups, weights = best.groups, best.importance
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    inverse_reach = torch.where(largest == 0, 0.0, -1 / largest)
    scale, least = largest / -32, torch.full_like(largest, torch.inf)
    for step in Q6_STEPS:
        codes = torch.round(groups * ((32 + step) * inverse_reach)).clamp_(-32, 31)
        weighed = codes * weights
        slope = (weighed * groups).sum(-1, keepdim=True) / (weighed * codes).sum(-1, keepdim=True)
        error = (codes * slope).sub_(groups).square_().mul_(weights).sum(-1, keepdim=True)
        better = error < least
        least, scale = torch.where(better, error, least), torch.where(better, slope, scale)
    return scale, None


def _fitted_factors(best: _Best) -> tuple[Tensor, Tensor | None]:
    """The factors of each super-block that fit its codes and integers best."""
    grid, spec = best.grid, best.spec
    lowest = 0 if grid.minimum is None else spec.integer_range[0]
    scale = scale_factors(grid.scale, spec)
    steps = (grid.codes(best.groups) - lowest) * scale.integers.flatten(1)[..., None]

    def summed(values: Tensor) -> Tensor:
        return (values * best.importance).unflatten(1, scale.integers.shape[1:]).sum((-2, -1))[..., None]

    square, mixed = summed(steps * steps), summed(steps * best.groups)
    if grid.minimum is None:
        return Factors(torch.where(square > 0, mixed / square, scale.factor), scale.integers).values(), None
    minimum = minimum_factors(grid.minimum, spec)
    depths = minimum.integers.flatten(1)[..., None].expand_as(steps)
    cross, depth, first = summed(steps * depths), summed(depths * depths), summed(depths * best.groups)
    spread = square * depth - cross * cross
    slope, start = (depth * mixed - cross * first) / spread, (square * first - cross * mixed) / spread
    fits = (slope > 0) & (start <= 0)
    factors = torch.where(fits, slope, scale.factor), torch.where(fits, start, minimum.factor)
    return Factors(factors[0], scale.integers).values(), Factors(factors[1], minimum.integers).values()


def _neighbors(best: _Best) -> tuple[Tensor, Tensor | None]:
    """Each group's integers or their neighbors, whichever err least; those that factors are told by stay."""
    scales = _moved(scale_factors(best.grid.scale, best.spec))
    minima: list[Tensor | None] = [None]
    if best.grid.minimum is not None:
        minima = [*_moved(minimum_factors(best.grid.minimum, best.spec))]
    chosen, least = best.grid, best.errors(best.grid)
    for scale, minimum in list(product(scales, minima))[1:]:
        error = best.errors(Grid(best.spec, scale, minimum=minimum))
        better = error < least
        least = torch.where(better, error, least)
        low = None if minimum is None or chosen.minimum is None else torch.where(better, minimum, chosen.minimum)
        chosen = Grid(best.spec, torch.where(better, scale, chosen.scale), minimum=low)
    return chosen.scale, chosen.minimum


def _moved(factors: Factors) -> list[Tensor]:
    """Numbers as they are, and with every integer but the largest one further from 0 and one nearer to it."""
    integers, sizes = factors.integers, factors.integers.abs()
    largest = sizes.amax(-1, keepdim=True)
    moved = [(sizes + step).clamp(min=0).minimum(largest).copysign(integers) for step in (1, -1)]
    kept = [torch.where((sizes == largest) | (other == 0), integers, other) for other in moved]
    return [Factors(factors.factor, one).values() for one in (integers, *kept)]
