"""Whether PyTorch's kernels for integers are worth using on this CPU: timed once a process.

Those for bfloat16 inputs have code for AVX2 and AVX-512 and are scalar elsewhere, up to 30 times slower on the same
CPU. Unpacking to float32 lies between, far from both, so that noise in the timing does not decide. `torch._int_mm` is
oneDNN's with AVX-512 and scalar elsewhere, right and, for many rows, 23 times slower than exact float32 products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from edgequant.quantization.layers.trusted_kernels import (
    INT8,
    UNPACK,
    circumstances,
    int4_kernel,
    int4_layout,
    int8_kernel,
    is_trusted,
    unpack_int4,
)
from edgequant.quantization.layers.unpacking.int8_products import exact_int8_product

SIZE, GROUP, ROWS = 512, 32, 8
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


@torch.compiler.assume_constant_result
def multiplies_int8_fast(device: torch.device) -> bool:
    """Whether `torch._int_mm` is trusted, and takes less time than exact float32 products; on CUDA it does."""
    return _is_int8_faster(circumstances()) if device.type == "cpu" else is_trusted(INT8, device)


@lru_cache(maxsize=16)
def _is_int8_faster(_circumstances: tuple[object, ...]) -> bool:
    if not is_trusted(INT8, torch.device("cpu")):
        return False
    with torch.inference_mode():
        codes = (torch.arange(SIZE * SIZE, dtype=torch.int32, device="cpu") % 256 - 128).to(torch.int8).view(SIZE, SIZE)
        return _is_faster(lambda: int8_kernel(codes[:ROWS], codes), lambda: exact_int8_product(codes[:ROWS], codes))


def _is_faster(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
    """By the least of a few times of each, in turns."""
    times = [(_time(one), _time(other)) for _ in range(REPETITIONS)]
    of_one, of_other = map(min, zip(*times, strict=True))
    return of_one < of_other


def _time(run: Callable[[], Tensor]) -> int:
    start = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start
