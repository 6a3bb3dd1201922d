"""Ranges of activations against NumPy on the same batches."""

import numpy as np
import pytest
import torch

from edgequant.errors import UserError
from edgequant.quantization.layers.observers import (
    LeastSquares,
    MinMax,
    MovingAverageMinMax,
    Percentile,
    make_observer,
)


def batches(count: int = 12, growth: float = 0.0) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(0.3, 1 + growth * i, (4, 16, 32)).astype(np.float32) for i in range(count)]


def observed(observer, given):
    for batch in given:
        observer.observe(torch.from_numpy(batch))
    return tuple(float(bound) for bound in observer.range())


def test_minmax_keeps_the_extremes_of_everything_seen():
    everything = np.concatenate([batch.ravel() for batch in batches()])
    assert observed(MinMax(), batches()) == (everything.min(), everything.max())


def test_minmax_of_all_positive_batches_does_not_contain_zero():
    low, _ = observed(MinMax(), [np.abs(batch) + 1 for batch in batches()])
    assert low >= 1


def test_moving_average_is_the_mean_of_the_first_batches_extremes():
    low, high = observed(MovingAverageMinMax(), batches(20))
    assert low == pytest.approx(np.mean([batch.min() for batch in batches(20)]), rel=1e-5)
    assert high == pytest.approx(np.mean([batch.max() for batch in batches(20)]), rel=1e-5)


def test_moving_average_forgets_with_its_decay_once_its_memory_is_full():
    """Jacob et al. 2017, section 3.1: after n = 1 / (1 - decay) batches, average <- decay average + (1 - decay) new."""
    given, decay = batches(30, growth=0.1), 0.8
    average = 0.0
    for index, batch in enumerate(given, start=1):
        weight = max(1 / index, 1 - decay)
        average = (1 - weight) * average + weight * float(batch.max())
    assert observed(MovingAverageMinMax(decay), given)[1] == pytest.approx(average, rel=1e-5)


@pytest.mark.parametrize("kept", [0.999, 0.99, 0.9])
def test_percentile_range_lies_between_the_neighboring_order_statistics(kept):
    given = batches(8, growth=0.3)
    everything = np.sort(np.concatenate([batch.ravel() for batch in given]))
    low, high = observed(Percentile(kept), given)
    bin_width = 4 * float(np.abs(everything).max()) / 2048  # the range doubles, so it is at most twice too wide
    for bound, share in ((low, (1 - kept) / 2), (high, (1 + kept) / 2)):
        place = round(share * len(everything))
        assert everything[place - 2] - bin_width <= bound <= everything[place + 2] + bin_width


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    """Of 8-bit affine quantisation with the range [low, high], written out in NumPy."""
    scale = (max(high, 0) - min(low, 0)) / 255
    zero_point = np.clip(np.round(-128 - min(low, 0) / scale), -128, 127)
    codes = np.clip(np.round(values / scale) + zero_point, -128, 127)
    return float((((codes - zero_point) * scale - values) ** 2).sum())


def test_least_squares_range_beats_every_other_shrunken_range():
    generator = np.random.default_rng(1)
    values = np.concatenate((generator.normal(0, 1, 200_000), [60.0, -55.0])).astype(np.float32)
    low, high = observed(LeastSquares(), [values.reshape(2, -1)])
    shrunken = [squared_error(values, -55 * factor, 60 * factor) for factor in np.linspace(0.2, 1, 100)]
    assert squared_error(values, low, high) <= min(shrunken) * 1.02  # the histogram moves values by half a bin
    assert high < 50  # it does give up outliers


def test_histogram_keeps_every_value_when_its_range_doubles():
    observer = Percentile()
    given = [np.full((10,), 0.01, np.float32), np.full((10,), 5.0, np.float32), np.full((10,), -300.0, np.float32)]
    observed(observer, given)
    assert observer.counts.sum() == 30


def test_unknown_observer_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match=r"observer must be one of moving_average_minmax, minmax, percentile, mse, got 'median'"
    ):
        make_observer("median")  # type: ignore[arg-type]
