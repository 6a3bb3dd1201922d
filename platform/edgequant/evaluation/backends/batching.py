"""Batches of similar length under a token budget that shrinks when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")
GPU_TOKENS = 65_536  # saturates one large GPU with a model of 0.1 to 1 B parameters; more only costs memory
CPU_TOKENS = 4_096  # keeps activations near the caches


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of items in batches, longest first, so that padded length times batch size stays within `max_tokens`.

    Longest first makes an out-of-memory error come at the start, and the order of items does not matter.
    An item longer than the budget gets a batch of its own. A batch that is an eighth full already takes no item shorter
    than four fifths of its longest: reading padding costs more than another pass.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    for index in order:
        longest = lengths[batch[0]] if batch else 0
        full = (len(batch) + 1) * longest > max_tokens
        mostly_padding = 8 * len(batch) * longest >= max_tokens and 5 * lengths[index] < 4 * longest
        if batch and (full or mostly_padding):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def run_within_memory(run: Callable[[list[int]], Result], indices: list[int]) -> Iterator[tuple[list[int], Result]]:
    """Run a batch; where CUDA memory runs out, its halves one after the other.

    Raises:
        torch.cuda.OutOfMemoryError: a single item does not fit.
    """
    try:
        result = run(indices)
    except torch.cuda.OutOfMemoryError:
        if len(indices) == 1:
            raise
        result = None
    if result is not None:
        yield indices, result
        return
    torch.cuda.empty_cache()
    middle = len(indices) // 2
    yield from run_within_memory(run, indices[:middle])
    yield from run_within_memory(run, indices[middle:])


def tokens_that_fit(device: torch.device, bytes_per_token: int) -> int:
    """Token budget of a forward pass: a quarter of the free GPU memory, within what makes it fast."""
    if device.type != "cuda":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(min(GPU_TOKENS, max(1024, (free + reusable) // 4 // max(1, bytes_per_token))))
