"""Ranges of activations, seen batch by batch: minimum and maximum, their moving average, percentiles, least squares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.affine import affine_parameters, dequantize, quantize
from edgequant.quantization.calibration import ObserverName

HISTOGRAM_BINS = 2048


class _Range(nn.Module):
    """`observe` takes activations of any shape; `range` gives the real [low, high] to represent, two scalars.

    Buffers travel with the model: a resumed training goes on with the ranges that it had.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def range(self) -> tuple[Tensor, Tensor]:
        return self.low, self.high


class MinMax(_Range):
    """The extremes of everything seen."""

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        low, high = torch.aminmax(values.detach().float())
        first = self.batches == 0
        self.low.copy_(torch.where(first, low, torch.minimum(self.low, low)))
        self.high.copy_(torch.where(first, high, torch.maximum(self.high, high)))
        self.batches += 1


class MovingAverageMinMax(_Range):
    """Moving average of each batch's extremes (Jacob et al. 2017, section 3.1).

    The first batches count fully, batch n with weight 1/n, until the average's memory is 1 / (1 - decay) batches long:
    a run of fifty steps is not ruled by its first batch.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        low, high = torch.aminmax(values.detach().float())
        self.batches += 1
        weight = torch.clamp(1.0 / self.batches, min=1 - self.decay)
        self.low += weight * (low - self.low)
        self.high += weight * (high - self.high)


class _Histogram(_Range):
    """A histogram whose range doubles as needed, so that old counts fall into new bins exactly."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(HISTOGRAM_BINS))

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        flat = values.detach().float().flatten()
        largest = flat.abs().amax().clamp(min=1e-12)
        if self.batches == 0:
            self.high.copy_(largest)
        while largest > self.high:
            self._double()
        self.counts += torch.histc(flat, HISTOGRAM_BINS, min=-float(self.high), max=float(self.high))
        self.batches += 1

    def _double(self) -> None:
        quarter = HISTOGRAM_BINS // 4
        merged = self.counts.view(-1, 2).sum(1)
        self.counts.zero_()
        self.counts[quarter : quarter + merged.numel()] = merged
        self.high *= 2

    def edges(self) -> Tensor:
        """Bin edges [bins + 1]."""
        return torch.linspace(-1, 1, HISTOGRAM_BINS + 1, device=self.high.device) * self.high


class Percentile(_Histogram):
    """The range that leaves out a share of the values at each end."""

    def __init__(self, kept: float = 0.9999) -> None:
        super().__init__()
        self.kept = kept

    def range(self) -> tuple[Tensor, Tensor]:
        share = self.counts.cumsum(0) / self.counts.sum().clamp(min=1)
        tail = torch.tensor([(1 - self.kept) / 2, (1 + self.kept) / 2], device=share.device)
        first, last = torch.searchsorted(share, tail).clamp(max=HISTOGRAM_BINS - 1)
        edges = self.edges()
        return edges[first], edges[last + 1]


class LeastSquares(_Histogram):
    """The range, out of 100 shrunken ones, with the smallest squared quantisation error at 8 bits."""

    def range(self) -> tuple[Tensor, Tensor]:
        edges = self.edges()
        centers = (edges[1:] + edges[:-1]) / 2
        filled = self.counts.nonzero().flatten()
        if not len(filled):
            return self.low, self.high
        low, high = edges[filled[0]], edges[filled[-1] + 1]
        shrink = torch.linspace(0.2, 1.0, 100, device=edges.device)[:, None]
        scale, zero_point = affine_parameters(low * shrink, high * shrink, (-128, 127))
        error = dequantize(quantize(centers, scale, zero_point, (-128, 127)), scale, zero_point) - centers
        best = shrink[(error.square() * self.counts).sum(1).argmin(), 0]
        return low * best, high * best


def make_observer(name: ObserverName) -> MinMax | MovingAverageMinMax | Percentile | LeastSquares:
    """An observer by name.

    Raises:
        UserError: unknown name.
    """
    kinds = {
        "moving_average_minmax": MovingAverageMinMax,
        "minmax": MinMax,
        "percentile": Percentile,
        "mse": LeastSquares,
    }
    if name not in kinds:
        raise UserError(f"observer must be one of {', '.join(kinds)}, got {name!r}")
    return kinds[name]()
