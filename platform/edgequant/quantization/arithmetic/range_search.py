"""`mse_clip`: the range of each group with the least squared rounding error, weighted by the inputs where known."""

from __future__ import annotations

import torch
from torch import Tensor

from edgequant.quantization.arithmetic.affine import QuantizedWeight, grouped
from edgequant.quantization.arithmetic.grids import Grid, grid_of_extremes, grid_of_range, spread_importance
from edgequant.quantization.arithmetic.super_block_search import super_block_grid
from edgequant.quantization.scheme import WeightSpec

CLIPPING_FACTORS = torch.linspace(1.0, 0.4, 19, device="cpu").tolist()  # of the whole range
# Both ends are reached from the larger by seven steps too.
Q4_0_FACTORS = torch.linspace(1.15, 0.4, 26, device="cpu").tolist()
TWO_BIT_FACTORS = torch.linspace(1.0, 0.1, 31, device="cpu").tolist()  # whose least error clips more
ONE_END = (1.1, 1.05, 0.95, 0.9, 0.85, 0.8)  # of either end, around the best whole range
REFITS = 2  # rounds of least squares for the scale between roundings
CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}  # weights searched at once: what fits the cache, what fills the device


class _Best:
    """The best grid so far of every group, and its error."""

    def __init__(self, groups: Tensor, spec: WeightSpec, importance: Tensor | None) -> None:
        self.groups, self.importance = groups, importance
        self.grid = grid_of_extremes(groups, spec)
        self.error = self._errors(self.grid)

    def _errors(self, grid: Grid) -> Tensor:
        """Of one grid, [rows, groups, 1], or of several that lie in a first dimension of their own."""
        inverse, squared = 1 / grid.scale, grid.scale.square()
        shift = -grid.offset * inverse
        if grid.scale.dim() == self.groups.dim():
            return self._sum(shift, inverse, grid) * squared
        return torch.stack([self._sum(*one, grid) for one in zip(shift, inverse, strict=True)]).mul_(squared)

    def _sum(self, shift: Tensor, inverse: Tensor, grid: Grid) -> Tensor:
        steps = (self.groups * inverse).add_(shift)  # on a CPU addcmul takes four times as long where it broadcasts
        squares = torch.round(steps).clamp_(*grid.spec.integer_range).sub_(steps).square_()
        if self.importance is not None:
            squares.mul_(self.importance)
        return squares.sum(-1, keepdim=True)

    def offer(self, grid: Grid) -> None:
        """Take a grid where it is better."""
        error = self._errors(grid)
        self._take(grid, error, error < self.error)

    def offer_several(self, grids: Grid, *others: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Take, where one is better, the best of grids that lie in a first dimension [n, rows, groups, 1].

        Returns:
            Where one is, and the best one's part of `others`, like tensors.
        """
        error, place = self._errors(grids).min(0, keepdim=True)  # the first of equals

        def best(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.expand(len(grids.scale), *place.shape[1:]).gather(0, place)[0]

        better = error[0] < self.error
        scale, zero_point, minimum = best(grids.scale), best(grids.zero_point), best(grids.minimum)
        assert scale is not None
        self._take(Grid(grids.spec, scale, zero_point, minimum), error[0], better)
        return better, [found for other in others if (found := best(other)) is not None]

    def _take(self, grid: Grid, error: Tensor, better: Tensor) -> None:
        def pick(new: Tensor | None, old: Tensor | None) -> Tensor | None:
            return None if new is None or old is None else torch.where(better, new, old)

        self.error = torch.where(better, error, self.error)
        scale = torch.where(better, grid.scale, self.grid.scale)
        zero_point = pick(grid.zero_point, self.grid.zero_point)
        self.grid = Grid(grid.spec, scale, zero_point, pick(grid.minimum, self.grid.minimum))


def least_squares_grid(groups: Tensor, spec: WeightSpec, importance: Tensor | None = None) -> Grid:
    """Search, group by group, for the grid with the least (weighted) squared rounding error.

    First both ends of the range shrink together, then each end alone; then the scale is solved for by least squares
    for the codes found, and codes are rounded anew. Never worse than round to nearest, since that is where it starts.
    K-quants have a search of their own, `super_block_search`.

    Args:
        groups: [rows, groups, group size] float32.
        importance: weights of the squared errors, broadcastable to `groups`; None: all equal.
    """
    search = super_block_grid if spec.is_k_quant else _search
    candidates = groups.shape[1] * len(_factors(spec))  # of small groups more numbers than the weights
    rows = max(1, CHUNK.get(groups.device.type, 1 << 20) // max(groups[0].numel(), candidates))
    if groups.shape[0] <= rows:
        return search(groups, spec, importance)
    found = [search(part, spec, importance) for part in groups.split(rows)]  # importance is the same for all rows

    def joined(parts: list[Tensor | None]) -> Tensor | None:
        return None if parts[0] is None else torch.cat([part for part in parts if part is not None])

    scale = torch.cat([grid.scale for grid in found])
    zero_point = joined([grid.zero_point for grid in found])
    return Grid(spec, scale, zero_point, joined([grid.minimum for grid in found]))


def _search(groups: Tensor, spec: WeightSpec, importance: Tensor | None) -> Grid:
    best = _Best(groups, spec, importance)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    factors = torch.tensor(_factors(spec), device=groups.device).view(-1, 1, 1, 1)
    lows, highs = low * factors, high * factors
    if spec.layout == "q4_0":
        for flipped in (False, True):
            best.offer_several(grid_of_range(lows, highs, spec, flipped=flipped))
    else:
        low, high = _better_range(best, spec, (low, high), lows, highs)
    if spec.zero_point != "none":
        one_end = torch.tensor(ONE_END, device=groups.device).view(-1, 1, 1, 1)
        low, high = _better_range(best, spec, (low, high), low * one_end, high)
        _better_range(best, spec, (low, high), low, high * one_end)
    for _ in range(REFITS):
        best.offer(_refitted(best))
    return best.grid


def _better_range(
    best: _Best, spec: WeightSpec, now: tuple[Tensor, Tensor], lows: Tensor, highs: Tensor
) -> tuple[Tensor, Tensor]:
    """Offer the grids of some ranges; returns the one that holds now, or the best of them where it is better."""
    lows, highs = torch.broadcast_tensors(lows, highs)
    better, (low, high) = best.offer_several(grid_of_range(lows, highs, spec), lows, highs)
    return torch.where(better, low, now[0]), torch.where(better, high, now[1])


def _factors(spec: WeightSpec) -> list[float]:
    if spec.layout == "q4_0":
        return Q4_0_FACTORS
    return TWO_BIT_FACTORS if spec.bits == 2 else CLIPPING_FACTORS


def _refitted(best: _Best) -> Grid:
    """The scale that fits the groups best for the present codes: least squares of one unknown."""
    grid = best.grid
    codes = grid.codes(best.groups)
    lowest = grid.spec.integer_range[0]
    steps = codes - (lowest if grid.minimum is not None else 0.0 if grid.zero_point is None else grid.zero_point)
    aim = best.groups if grid.minimum is None else best.groups - grid.minimum
    weights = steps if best.importance is None else steps * best.importance
    squares = (weights * steps).sum(-1, keepdim=True)
    scale = torch.where(squares > 0, (weights * aim).sum(-1, keepdim=True) / squares, grid.scale)
    if grid.spec.layout == "affine":
        scale = torch.where(scale > 0, scale, grid.scale)
    return grid.with_scale(scale)


def choose_grid(weight: Tensor, spec: WeightSpec, importance: Tensor | None = None) -> Grid:
    """The least-squares grid of a weight [out, in]; `importance` [in] are the mean squares of its inputs, or None."""
    spread = None if importance is None else spread_importance(_positive(importance), weight, spec)
    return least_squares_grid(grouped(weight.float(), spec), spec, spread)


def _positive(importance: Tensor) -> Tensor:
    """Inputs that were silent during calibration keep a little weight: they may not stay silent."""
    return importance + 1e-3 * importance.mean() + torch.finfo(torch.float32).tiny


def quantize_clipped(weight: Tensor, spec: WeightSpec, importance: Tensor | None = None) -> QuantizedWeight:
    """Round a weight [out, in] to the nearest points of its least-squares grid."""
    grid = choose_grid(weight, spec, importance)
    return grid.quantized(grid.codes(grouped(weight.float(), spec)))
