"""Whether PyTorch's kernels that read integer weights are worth using on this CPU: timed once a process.

Those for bfloat16 inputs have code for AVX2 and AVX-512 and are scalar elsewhere, up to 30 times slower on the same
CPU. Unpacking to float32 lies between, far from both, so that noise in the timing does not decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from edgequant.quantization.layers.trusted_kernels import (
    UNPACK,
    circumstances,
    int4_kernel,
    int4_layout,
    is_trusted,
    unpack_int4,
)

SIZE, GROUP = 512, 32
REPETITIONS = 7


@torch.compiler.assume_constant_result  # a graph that asks would break, and time anew
def reads_integers_fast(device: torch.device) -> bool:
    """Whether the int4 kernel takes less time for one row than unpacking does; on CUDA, and without it, it does."""
    if device.type != "cpu" or not is_trusted(UNPACK, device):
        return True
    return _is_int4_faster(circumstances())


@lru_cache(maxsize=16)
def _is_int4_faster(_circumstances: tuple[object, ...]) -> bool:
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        codes = torch.arange(SIZE * SIZE, dtype=torch.int32, device="cpu").view(SIZE, SIZE) % 16
        layout, nibbles = int4_layout(codes), (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8)
        pair = torch.ones(SIZE // GROUP, SIZE, 2, dtype=torch.bfloat16, device="cpu")
        input = torch.ones(1, SIZE, dtype=torch.float32, device="cpu")
        rounded = input.to(torch.bfloat16)
        return _is_faster(
            lambda: int4_kernel(rounded, layout, GROUP, pair),
            lambda: functional.linear(input, unpack_int4(nibbles, -8.0)),
        )


def _is_faster(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
    """By the least of a few times of each, in turns."""
    times = [(_time(one), _time(other)) for _ in range(REPETITIONS)]
    of_one, of_other = map(min, zip(*times, strict=True))
    return of_one < of_other


def _time(run: Callable[[], Tensor]) -> int:
    start = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start
