"""Scales of grids of three or four symmetric levels, which are set by a group's spread and not by its extremes."""

from __future__ import annotations

from torch import Tensor

from edgequant.quantization.scheme import WeightSpec

# Step over standard deviation with the least squared error for a normal distribution: Max 1960, Quantizing for Minimum
# Distortion, table II, by the number of levels.
STEP_OF_NORMAL = {3: 1.2240, 4: 0.9957}


def scale_of_spread(groups: Tensor, spec: WeightSpec) -> Tensor:
    """The step S of the levels -S, 0, S or -3/2 S, -1/2 S, 1/2 S, 3/2 S that suits normally distributed weights.

    Args:
        groups: [rows, groups, group size] float32.

    Returns:
        [rows, groups, 1]; 0 for a group of zeros.
    """
    return groups.square().mean(-1, keepdim=True).sqrt() * STEP_OF_NORMAL[spec.levels or 4]
