"""Parameters of quantisers that training moves: scales relative to their start, zero points in integer steps."""

from __future__ import annotations

from torch import Tensor, nn

# Weights move by fractions of their size at rates near 1e-4; a scale's ratio to its start and a zero point or a minimum
# in integer steps are larger numbers, whose rates are these multiples of the weights'.
SCALE_LEARNING_RATE = 10.0
ZERO_POINT_LEARNING_RATE = 100.0
LEARNED = {
    "relative_scale": SCALE_LEARNING_RATE,
    "zero_point": ZERO_POINT_LEARNING_RATE,
    "minimum_shift": ZERO_POINT_LEARNING_RATE,
}  # by name, factor on the learning rate


class LearnedParameters(nn.Module):
    """A module that holds some of LEARNED; a parameter says its factor and that it is none of the model's own."""

    def learn(self, name: str, start: Tensor) -> None:
        """Make a parameter of a starting value."""
        setattr(self, name, nn.Parameter(start))
        self._mark()

    def _mark(self) -> None:
        for name, factor in LEARNED.items():
            parameter = self._parameters.get(name)
            if parameter is not None:
                parameter.learning_rate_factor = factor  # type: ignore[attr-defined]  # read by the training loop
                parameter.is_scale = True  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, object]) -> None:
        """Of a copy: torch copies a parameter without its attributes, and scales would train at the weights' rate."""
        super().__setstate__(state)
        self._mark()
