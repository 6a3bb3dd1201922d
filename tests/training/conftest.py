"""Text that a 2-layer model learns in a few steps."""

import pytest
import torch


@pytest.fixture
def sequences() -> torch.Tensor:
    """[24, 32] tokens: bytes that count upwards from seeded starts."""
    starts = torch.randint(0, 250, (24, 1), generator=torch.Generator().manual_seed(0))
    return (starts + torch.arange(32)) % 250
