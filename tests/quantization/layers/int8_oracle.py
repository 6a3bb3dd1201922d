"""int8 matrices of the full range, and their product as numpy has it in int64."""

from __future__ import annotations

import numpy as np
import torch


def full_range(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Random int8 [rows, columns], from -128 to 127."""
    return torch.randint(-128, 128, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def in_int64(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    """left [m, k] int8 times right [n, k] int8 transposed: [m, n] int64."""
    return left.numpy().astype(np.int64) @ right.numpy().T.astype(np.int64)
