"""Bits for layers of given sizes and losses: the best that fits, against every other choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgequant.quantization.mixed_precision.bit_allocation import allocate

TABLES = st.lists(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=2, max_size=3), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(table=TABLES, share=st.floats(0, 1))
def test_nothing_that_fits_is_better_than_the_allocation(table, share):
    losses = {f"layer{i}": {bits: loss for bits, (loss, _) in enumerate(row)} for i, row in enumerate(table)}
    sizes = {f"layer{i}": {bits: size for bits, (_, size) in enumerate(row)} for i, row in enumerate(table)}
    least = sum(min(row.values()) for row in sizes.values())
    capacity = round(least + share * (sum(max(row.values()) for row in sizes.values()) - least)) + 0.5
    chosen = allocate(losses, sizes, capacity)
    assert sum(sizes[layer][bits] for layer, bits in chosen.items()) <= capacity
    options = itertools.product(*(list(row) for row in losses.values()))
    combinations = [dict(zip(losses, option, strict=True)) for option in options]
    fitting = [c for c in combinations if sum(sizes[name][bits] for name, bits in c.items()) <= capacity]
    best = min(sum(losses[name][bits] for name, bits in c.items()) for c in fitting)
    assert sum(losses[layer][bits] for layer, bits in chosen.items()) <= best + 1e-5


def test_hundreds_of_layers_of_few_sizes_are_allocated_in_a_moment():
    """As in a real model, where many choices are nearly equal: badly scaled, this one makes the solver give up."""
    draw = np.random.default_rng(0)
    widths, sensitivities = draw.choice([110_592, 331_776, 884_736], 500), np.exp(draw.normal(0, 1.5, 500))
    losses = {str(i): {bits: s * 4.0**-bits for bits in (3, 4, 5, 6, 8)} for i, s in enumerate(sensitivities)}
    sizes = {str(i): {bits: int(w * bits / 8) + 300 for bits in (3, 4, 5, 6, 8)} for i, w in enumerate(widths)}
    capacity = sum(by_bits[4] for by_bits in sizes.values()) * (1 - 1e-6)
    chosen = allocate(losses, sizes, capacity)
    assert 0.999 * capacity < sum(sizes[layer][bits] for layer, bits in chosen.items()) <= capacity
    equal = sum(by_bits[4] for by_bits in losses.values())
    assert sum(losses[layer][bits] for layer, bits in chosen.items()) < 0.8 * equal


def test_an_allocation_that_cannot_be_is_an_error():
    with pytest.raises(ValueError, match="no choice of bits fits"):
        allocate({"layer": {3: 1.0, 4: 0.5}}, {"layer": {3: 30, 4: 40}}, 29)
