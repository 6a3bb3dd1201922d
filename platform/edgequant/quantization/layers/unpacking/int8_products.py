"""int8 times int8, exact, where `torch._int_mm` is of no use: on the CPU by FBGEMM, on any device as float32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from edgequant.quantization.layers.trusted_kernels import FBGEMM_INT8, fbgemm_kernel, fbgemm_layout, is_trusted

EXACT_INPUTS = 1024  # 1,024 x 128 x 128 = 2^24: up to here float32 holds every integer
EXACT_OUTPUTS = 512  # with 1,024 inputs 2 MB as float32, about a core's cache


@dataclass(frozen=True)
class HalvedProduct:
    """int8 codes [out, in] in FBGEMM's layout, a second copy of 8 bits a weight."""

    layout: tuple[Any, ...]

    @staticmethod
    def of(codes: Tensor) -> HalvedProduct | None:
        """None where FBGEMM's product is not trusted, as on no other device than the CPU."""
        return HalvedProduct(fbgemm_layout(codes)) if is_trusted(FBGEMM_INT8, codes.device) else None

    def tensors(self) -> list[Tensor]:
        """What the layout holds, unpacked, for who counts memory."""
        return [torch.ops.quantized.linear_unpack(part)[0].int_repr() for part in self.layout]

    def product(self, halves: Tensor) -> Tensor:
        """Halves of inputs [2m, in] times the codes transposed, summed: [m, out] int32."""
        return fbgemm_kernel(halves, self.layout)


def exact_int8_product(left: Tensor, right: Tensor) -> Tensor:
    """left [m, k] int8 times right [n, k] int8 transposed: [m, n] int32, without an integer kernel.

    Float32 products of at most 1,024 inputs are summed as int32. Each partial sum, in whatever order, is an integer of
    at most 1,024 x 128 x 128 = 2^24, which float32 holds. Where a setting has float32 products computed in bfloat16 or
    TF32, these hold int8 too. int32 asks for k below 2^17.

    512 outputs at a time stay in the cache as floats. On an AMD EPYC under ONEDNN_MAX_CPU_ISA=AVX2, one thread, 1, 16,
    256 rows times 49,152 x 576 take 9, 17, 189 ms; by `torch._int_mm` on 7-bit halves of `right`, also exact, 20, 33,
    239 ms; by the wrong kernel 8, 12, 109 ms. With 576 x 1,536: 0.19, 0.51, 5.2 and 0.28, 0.51, 4.5 and 0.1, 0.2, 2.7.
    """
    with torch.autocast(left.device.type, enabled=False):
        parts = left.float().split(EXACT_INPUTS, dim=1)
        return torch.cat([_sum_of_products(parts, rows.float()) for rows in right.split(EXACT_OUTPUTS)], dim=1)


def _sum_of_products(parts: tuple[Tensor, ...], right: Tensor) -> Tensor:
    pairs = zip(parts, right.split(EXACT_INPUTS, dim=1), strict=True)
    return reduce(torch.add, ((part @ other.t()).to(torch.int32) for part, other in pairs))
