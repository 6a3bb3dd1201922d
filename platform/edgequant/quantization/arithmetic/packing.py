"""Integers of 2 to 8 bits in bytes: two 4-bit codes share a byte, eight 3-bit codes three bytes.

Value i of a run of 8 takes the bits [i b, (i + 1) b) of its b bytes, lowest first. 8-bit codes are stored as int8.
Five ternary codes share a byte, as 3^5 = 243 < 256: 1.6 bits each, read back by a table as fast as 2-bit codes are.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

RUN = 8  # codes that fill whole bytes at any width
TRITS = 5  # ternary codes in a byte


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
    if bits == 2:
        return _looked_up(packed, 4)[..., :count]
    per_run, width = RUN, bits
    shifts = 8 * torch.arange(width, device=packed.device)
    words = (packed.unflatten(-1, (-1, width)).to(torch.int64) << shifts).sum(-1, keepdim=True)
    values = (words >> (torch.arange(per_run, device=packed.device) * bits)) & (2**bits - 1)
    return (values.flatten(-2)[..., :count] - 2 ** (bits - 1)).to(torch.int8)


def packed_ternary_length(count: int) -> int:
    """Bytes that `count` ternary codes take; a row ends at a byte."""
    return -(-count // TRITS)


def pack_ternary(codes: Tensor) -> Tensor:
    """Pack codes -1, 0, 1 [..., n] int8 to [..., packed_ternary_length(n)] uint8: the sum of (code_i + 1) 3^i."""
    digits = functional.pad(codes.to(torch.int16) + 1, (0, -codes.shape[-1] % TRITS)).unflatten(-1, (-1, TRITS))
    return (digits * 3 ** torch.arange(TRITS, device=codes.device)).sum(-1).to(torch.uint8)


def unpack_ternary(packed: Tensor, count: int) -> Tensor:
    """The inverse of `pack_ternary`: codes [..., count] int8."""
    return _looked_up(packed, TRITS)[..., :count]


def _looked_up(packed: Tensor, per_byte: int) -> Tensor:
    """Each byte of [..., n] replaced by its codes, [..., n per_byte]."""
    table = _codes_of_bytes(per_byte, packed.device)
    codes = table.index_select(0, packed.flatten().to(torch.int32))
    return codes.view(*packed.shape[:-1], -1)


@lru_cache(maxsize=16)
def _codes_of_bytes(per_byte: int, device: torch.device) -> Tensor:
    """[256, per_byte] int8: four 2-bit codes from -2, or five ternary ones from -1."""
    base, lowest = (3, -1) if per_byte == TRITS else (4, -2)
    digits = torch.arange(256, device="cpu")[:, None] // base ** torch.arange(per_byte, device="cpu") % base
    return (digits + lowest).to(device, torch.int8)
