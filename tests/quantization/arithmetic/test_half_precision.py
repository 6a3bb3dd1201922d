"""float16 rounding as arithmetic is the cast's rounding, for every kind of number."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from edgequant.quantization.arithmetic.half_precision import rounded_to_float16


def same(values: torch.Tensor) -> bool:
    found, expected = rounded_to_float16(values), values.half().float()
    return bool(((found == expected) | (found.isnan() & expected.isnan())).all())


def test_every_float16_number_and_every_middle_between_two():
    numbers = torch.arange(-32768, 32768).to(torch.int16).view(torch.float16).float()
    numbers = numbers[numbers.isfinite()].sort().values
    assert torch.equal(rounded_to_float16(numbers), numbers)
    assert same((numbers[1:] + numbers[:-1]) / 2)  # ties go to even


def test_overflow_and_what_is_no_number():
    assert same(torch.tensor([65504.0, 65519.9, 65520.0, 1e30, -7e4, 0.0, -0.0, torch.inf, -torch.inf, torch.nan]))


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_any_float32_numbers(values):
    assert same(torch.tensor(values))
