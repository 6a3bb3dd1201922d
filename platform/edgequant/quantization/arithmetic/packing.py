"""Integers of 2 to 8 bits in bytes: two 4-bit codes share a byte, eight 3-bit codes three bytes.

Value i of a run of 8 takes the bits [i b, (i + 1) b) of its b bytes, lowest first. 8-bit codes are stored as int8.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

RUN = 8  # codes that fill whole bytes at any width


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` codes take; 4- and 2-bit rows end at a byte, other widths at a run of 8 codes."""
    if bits in (2, 4, 8):
        return -(-count * bits // 8)
    return -(-count // RUN) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack signed codes [..., n] int8 along the last dimension to [..., packed_length(n, bits)].

    Returns:
        int8 for 8 bits, else uint8.
    """
    if bits == 8:
        return codes.to(torch.int8)
    unsigned = (codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    per_run = 8 // bits if bits in (2, 4) else RUN
    missing = -codes.shape[-1] % per_run
    runs = functional.pad(unsigned, (0, missing)).unflatten(-1, (-1, per_run)).to(torch.int64)
    shifts = torch.arange(per_run, device=codes.device) * bits
    words = (runs << shifts).sum(-1, keepdim=True)  # at most 56 bits
    width = per_run * bits // 8
    bytes_of = (words >> (8 * torch.arange(width, device=codes.device))) & 0xFF
    return bytes_of.to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: signed codes [..., count] int8."""
    if bits == 8:
        return packed
    if bits == 4:  # the common case, without 64-bit words
        unsigned = torch.stack((packed & 0xF, packed >> 4), -1).flatten(-2)[..., :count]
        return unsigned.to(torch.int8) - 8
    per_run = 8 // bits if bits == 2 else RUN
    width = per_run * bits // 8
    shifts = 8 * torch.arange(width, device=packed.device)
    words = (packed.unflatten(-1, (-1, width)).to(torch.int64) << shifts).sum(-1, keepdim=True)
    values = (words >> (torch.arange(per_run, device=packed.device) * bits)) & (2**bits - 1)
    return (values.flatten(-2)[..., :count] - 2 ** (bits - 1)).to(torch.int8)
