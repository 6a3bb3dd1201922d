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

    Buffers travel with the model: a resumed training goes on with the ranges that it had. `counted`, a bool scalar on
    the device, says whether an observation counts; without one it does. Nothing waits for the device, and no line
    depends on a value: compiled code is translated once.
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

    def _take(self, counted: Tensor | None, **new: Tensor) -> None:
        for name, values in new.items():
            buffer = getattr(self, name)
            buffer.copy_(values if counted is None else torch.where(counted, values, buffer))


class MinMax(_Range):
    """The extremes of everything seen."""

    @torch.no_grad()
    def observe(self, values: Tensor, counted: Tensor | None = None) -> None:
        low, high = torch.aminmax(values.detach().float())
        first = self.batches == 0
        low = torch.where(first, low, torch.minimum(self.low, low))
        high = torch.where(first, high, torch.maximum(self.high, high))
        self._take(counted, low=low, high=high, batches=self.batches + 1)


class MovingAverageMinMax(_Range):
    """Moving average of each batch's extremes (Jacob et al. 2017, section 3.1).

    The first batches count fully, batch n with weight 1/n, until the average's memory is 1 / (1 - decay) batches long:
    a run of fifty steps is not ruled by its first batch.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay

    @torch.no_grad()
    def observe(self, values: Tensor, counted: Tensor | None = None) -> None:
        low, high = torch.aminmax(values.detach().float())
        batches = self.batches + 1
        weight = torch.clamp(1.0 / batches, min=1 - self.decay)
        low, high = self.low + weight * (low - self.low), self.high + weight * (high - self.high)
        self._take(counted, low=low, high=high, batches=batches)


class _Histogram(_Range):
    """A histogram whose range doubles as needed, so that old counts fall into new bins exactly."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(HISTOGRAM_BINS))

    @torch.no_grad()
    def observe(self, values: Tensor, counted: Tensor | None = None) -> None:
        flat = values.detach().float().flatten()
        largest = flat.abs().amax().clamp(min=1e-12)
        start = torch.where(self.batches == 0, largest, self.high)
        doublings = torch.ceil(torch.log2(largest / start)).clamp(min=0)
        high = start * torch.exp2(doublings)
        short = largest > high  # log2 rounds: exactly the power of two that covers the largest
        high, doublings = torch.where(short, high * 2, high), doublings + short
        counts = self._merged(doublings) + torch.histc(flat / high, HISTOGRAM_BINS, min=-1, max=1)
        self._take(counted, high=high, counts=counts, batches=self.batches + 1)

    def _merged(self, doublings: Tensor) -> Tensor:
        """The counts as they fall into bins of a range doubled so many times: pairs of bins merge about the middle."""
        middle = HISTOGRAM_BINS // 2
        place = torch.arange(HISTOGRAM_BINS, device=doublings.device) - middle
        place = torch.floor(place / torch.exp2(doublings)).long() + middle
        return torch.zeros_like(self.counts).scatter_add(0, place, self.counts)

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
        bins = torch.searchsorted(share, tail).clamp(max=HISTOGRAM_BINS - 1)
        edges = self.edges()
        return edges[bins[:1]].squeeze(), edges[bins[1:] + 1].squeeze()


class LeastSquares(_Histogram):
    """The range, out of 100 shrunken ones, with the smallest squared quantisation error at 8 bits."""

    def range(self) -> tuple[Tensor, Tensor]:
        edges = self.edges()
        centers = (edges[1:] + edges[:-1]) / 2
        filled = (self.counts > 0).int()
        low, high = edges[:-1][filled.argmax()[None]], edges[1:].flip(0)[filled.flip(0).argmax()[None]]
        shrink = torch.linspace(0.2, 1.0, 100, device=edges.device)[:, None]
        scale, zero_point = affine_parameters(low * shrink, high * shrink, (-128, 127))
        error = dequantize(quantize(centers, scale, zero_point, (-128, 127)), scale, zero_point) - centers
        best = shrink.squeeze(1)[(error.square() * self.counts).sum(1).argmin()[None]]
        return (low * best).squeeze(), (high * best).squeeze()


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
