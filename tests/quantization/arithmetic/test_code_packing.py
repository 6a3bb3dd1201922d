"""Codes of 2 to 8 bits in bytes: nothing is lost, and the layout is the documented one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgequant.quantization.arithmetic.packing import pack, packed_length, unpack


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.integers(2, 8), st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_every_code_survives_packing_at_every_width_and_length(bits, rows, count, seed):
    codes = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, count)).astype(np.int8)
    packed = pack(torch.from_numpy(codes), bits)
    assert packed.shape == (rows, packed_length(count, bits))
    assert np.array_equal(unpack(packed, bits, count).numpy(), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_runs_of_eight_codes_take_exactly_their_bits(bits):
    codes = torch.zeros(1, 64, dtype=torch.int8)
    assert pack(codes, bits).numel() * 8 == 64 * bits


def test_two_four_bit_codes_share_a_byte_low_nibble_first():
    assert pack(torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8), 4).tolist() == [[0xF0, 0x78]]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_the_bytes_are_the_little_endian_number_that_the_codes_spell(bits):
    """Code i takes the bits [i b, (i + 1) b) of a run, lowest first: Python's integers say which bytes that makes."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, 8)
    number = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    signed = torch.from_numpy(codes - 2 ** (bits - 1)).to(torch.int8)[None]
    assert bytes(pack(signed, bits)[0].tolist()) == number.to_bytes(bits, "little")
