"""PyTorch's integer kernels, and whether they compute right on this machine: each is compared once per process.

`torch._int_mm` is oneDNN's u8 x s8 product on x86. Without VNNI (AMD before Zen 4, most Intel before Ice Lake and Alder
Lake) oneDNN multiplies by VPMADDUBSW, which adds two neighbouring products in 16 bits and saturates without a word:
(127 + 128) 127 + (127 + 128) 127 = 64,770 > 32,767. Full-range int8 then gives wrong sums at every shape.

A verdict rests on what was tried: one, few and many rows, short, odd and long sums, random and extreme integers. Other
shapes are taken to be alike: oneDNN chooses blocks by shape and the instruction by CPU, and extremes show which
instruction it is in a sum of two products already. One failure anywhere rules the kernel out for every shape.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CUDA_INNER_TILES = 2  # of 16 inputs, side by side in the int4 kernel's layout
CUDA_MINIMUM_ROWS = 32  # cuBLAS's int8 product wants more than 16 rows
SETTINGS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")  # choose among a CPU's kernels
ROWS = (1, 4, 16, 64)
INT8_SIZES = ((7, 33), (64, 48), (576, 48), (4096, 32))  # inputs, outputs
FBGEMM_INPUTS = 2048  # 2,048 x 64 x 128 = 2^24: up to here float32 holds every integer that FBGEMM returns
FBGEMM_SIZES = (*INT8_SIZES, (5000, 16))
INT4_SIZES = ((64, 16, 32), (512, 48, 128), (1536, 64, 64))  # inputs, outputs, group
BFLOAT16_ROUNDOFF, FLOAT32_ROUNDOFF = 2.0**-8, 2.0**-24


class Kernel(NamedTuple):
    """`name` for people, what takes its place where it is `not trusted`, the devices that have it, its comparison."""

    name: str
    instead: str
    devices: tuple[str, ...]
    is_correct: Callable[[torch.device], bool]


# ---------------------------------------------------------------------------------------------------------- the kernels


def int8_kernel(left: Tensor, right: Tensor) -> Tensor:
    """left [m, k] int8 times right [n, k] int8 transposed by `torch._int_mm`: [m, n] int32, right where trusted.

    On CUDA, rows, inputs and outputs are padded to what cuBLAS takes.
    """
    if left.device.type != "cuda":
        return torch._int_mm(left, right.t())
    rows, outputs = left.shape[0], right.shape[0]
    inputs_missing, outputs_missing = -left.shape[1] % 8, -outputs % 8
    rows_missing = max(CUDA_MINIMUM_ROWS - rows, -rows % 8)
    left = functional.pad(left, (0, inputs_missing, 0, rows_missing))
    right = (
        functional.pad(right, (0, inputs_missing, 0, outputs_missing)) if inputs_missing or outputs_missing else right
    )
    return torch._int_mm(left, right.t())[:rows, :outputs]


def fbgemm_layout(codes: Tensor) -> tuple[Any, ...]:
    """Codes [out, in] int8 in FBGEMM's order, a copy: objects of PyTorch's, each of at most 2,048 inputs."""
    before = torch.backends.quantized.engine
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)  # its tensors, not its products
        torch.backends.quantized.engine = "fbgemm"
        try:
            return tuple(_fbgemm_part(part.contiguous()) for part in codes.split(FBGEMM_INPUTS, dim=1))
        finally:
            torch.backends.quantized.engine = before


def _fbgemm_part(codes: Tensor) -> Any:
    ones = torch.ones(len(codes), dtype=torch.float64, device="cpu")
    quantized = torch._make_per_channel_quantized_tensor(codes, ones, torch.zeros_like(ones, dtype=torch.int64), 0)
    return torch.ops.quantized.linear_prepack(quantized, None)


def halves_of(left: Tensor) -> Tensor:
    """int8 [m, k] as the sum of two halves from -64 to 64, one below the other: [2m, k] float32."""
    half = left >> 1
    return torch.cat((half, left - half)).float()


def fbgemm_kernel(halves: Tensor, layout: tuple[Any, ...]) -> Tensor:
    """`halves_of` [m, k] int8 times `fbgemm_layout`'s codes transposed: [m, n] int32, right where trusted.

    Without VNNI FBGEMM, too, adds two products in 16 bits: 0 to 128, as it holds halves, times int8 lie within them.
    """
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    parts = (halves,) if len(layout) == 1 else halves.split(FBGEMM_INPUTS, dim=1)
    products = (multiply(part, 1.0, 64, packed).to(torch.int32) for part, packed in zip(parts, layout, strict=True))
    upper, lower = reduce(torch.add, products).chunk(2)
    return upper + lower


def int4_layout(codes: Tensor) -> Tensor:
    """Codes [out, in] from 0 to 15 (int32) in the int4 kernel's order, which is another one on CUDA."""
    if not codes.is_cuda:
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)  # the first one in the high half
    return torch.ops.aten._convert_weight_to_int4pack(pairs, CUDA_INNER_TILES)


def int4_kernel(input: Tensor, weight: Tensor, group_size: int, scale_and_offset: Tensor) -> Tensor:
    """input [m, in] times `int4_layout`'s w = (c - 8) scale + offset, the pair [groups, out, 2]: [m, out], bfloat16."""
    multiply = torch.ops.aten._weight_int4pack_mm if input.is_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
    return multiply(input.contiguous(), weight, group_size, scale_and_offset)  # CUDA's takes rows side by side alone


def int8_weight_kernel(input: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """input [m, in] times codes [out, in] int8 times scale [out], in bfloat16: [m, out]."""
    return torch._weight_int8pack_mm(input, codes, scale)


def unpack_fused(rows: Tensor, bits: int) -> Tensor:
    """Rows of FBGEMM's layout [n, bytes]: unsigned codes of 4 bits (two a byte, lower half first) or 8, then a scale
    and an offset, float16 with 4 bits, float32 with 8. Codes times scale plus offset, [n, codes] float32.
    """
    unpack = (
        torch.ops.quantized.embedding_bag_4bit_unpack if bits == 4 else torch.ops.quantized.embedding_bag_byte_unpack
    )
    return unpack(rows)


def unpack_int4(codes: Tensor, first: float) -> Tensor:
    """Codes 0 to 15, two a byte, the lower half first, [rows, columns]: c + first, [rows, 2 columns] float32."""
    rows, columns = codes.shape
    fused = codes.new_empty(rows, columns + 4)
    fused[:, :columns] = codes
    fused[:, columns:] = _scale_one(first)
    return unpack_fused(fused, 4)


@lru_cache(maxsize=8)
def _scale_one(offset: float) -> Tensor:
    return torch.tensor([1.0, offset], dtype=torch.float16, device="cpu").view(torch.uint8)


# ------------------------------------------------------------------------------------------------------ the comparisons


def _int8_is_correct(device: torch.device) -> bool:
    return all(
        torch.equal(int8_kernel(left.to(device), right.to(device)).cpu().long(), _exact(left, right))
        for left, right in _int8_operands(INT8_SIZES)
    )


def _fbgemm_is_correct(_device: torch.device) -> bool:
    return all(
        torch.equal(fbgemm_kernel(halves_of(left), fbgemm_layout(right)).long(), _exact(left, right))
        for left, right in _int8_operands(FBGEMM_SIZES)
    )


def _int8_operands(sizes: tuple[tuple[int, int], ...]) -> Iterator[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    for inputs, outputs in sizes:
        left, right = _full_range(max(ROWS), inputs, draw), _full_range(outputs, inputs, draw)
        yield from ((left[row : row + 1], right) for row in range(5))
        yield from ((left[:rows], right) for rows in ROWS[1:])


def _full_range(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """Random int8; the first rows hold extremes only: greatest, least, in turn and by chance."""
    codes = torch.randint(-128, 128, (rows, columns), generator=draw, dtype=torch.int8, device="cpu")
    codes[0], codes[1], codes[2, ::2], codes[2, 1::2] = 127, -128, 127, -128
    codes[3] = torch.where(codes[3] < 0, -128, 127)
    return codes


def _exact(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() @ right.double().t()).long()  # below 2^53


def _int4_is_correct(device: torch.device) -> bool:
    return all(_int4_agrees(device, *size) for size in INT4_SIZES)


def _int4_agrees(device: torch.device, inputs: int, outputs: int, group: int) -> bool:
    draw = torch.Generator().manual_seed(inputs)
    codes = torch.randint(0, 16, (outputs, inputs), generator=draw, dtype=torch.int32, device="cpu")
    codes[0], codes[1] = 0, 15
    pair = _bfloat16(inputs // group, outputs, 2, draw=draw)
    scale, offset = (part.t().double().repeat_interleave(group, 1) for part in pair.unbind(-1))
    parts = (codes - 8) * scale, offset
    layout, on_device = int4_layout(codes.to(device)), pair.to(device)
    return _agrees(lambda x: int4_kernel(x.to(device), layout, group, on_device), parts, draw)


def _int8_weight_is_correct(device: torch.device) -> bool:
    return all(_int8_weight_agrees(device, *size) for size in INT8_SIZES[1:])


def _int8_weight_agrees(device: torch.device, inputs: int, outputs: int) -> bool:
    draw = torch.Generator().manual_seed(inputs)
    codes, scale = _full_range(outputs, inputs, draw), _bfloat16(outputs, draw=draw)
    parts = codes * scale.double()[:, None], torch.zeros(1, dtype=torch.float64, device="cpu")
    on_device = codes.to(device), scale.to(device)
    return _agrees(lambda x: int8_weight_kernel(x.to(device), *on_device), parts, draw)


def _unpacking_is_correct(device: torch.device) -> bool:
    sizes = (2, 32, 66, 576)
    return all(_unpacks(bits, size, device) for bits in (4, 8) for size in sizes) and _unpacks_int4(device)


def _unpacks(bits: int, size: int, device: torch.device) -> bool:
    """Scales of 11 bits and offsets that are multiples of them: the result is exact, fused or not."""
    draw = torch.Generator().manual_seed(size)
    codes = torch.randint(0, 256, (300, size * bits // 8), generator=draw, dtype=torch.uint8, device="cpu")
    scale = torch.randn(300, 1, generator=draw, dtype=torch.float32, device="cpu").half()
    steps = torch.randint(-8, 9, (300, 1), generator=draw, device="cpu") * 2.0 ** (bits - 4)
    parameters = torch.cat((scale, scale * steps.half()), 1).to(torch.float16 if bits == 4 else torch.float32)
    found = unpack_fused(torch.cat((codes, parameters.view(torch.uint8)), 1).to(device), bits)
    integers = codes if bits == 8 else torch.stack((codes & 0xF, codes >> 4), -1).flatten(-2)
    return torch.equal(found.cpu().double(), integers * parameters[:, :1].double() + parameters[:, 1:].double())


def _unpacks_int4(device: torch.device) -> bool:
    codes = torch.arange(256, dtype=torch.int32, device="cpu").to(torch.uint8)[:, None].expand(256, 33).contiguous()
    expected = torch.stack((codes & 0xF, codes >> 4), -1).flatten(-2).float() - 8
    return torch.equal(unpack_int4(codes.to(device), -8.0).cpu(), expected)


def _agrees(kernel: Callable[[Tensor], Tensor], parts: tuple[Tensor, Tensor], draw: torch.Generator) -> bool:
    """Whether kernel(x), x bfloat16, is x (a + b)^T for weight parts a and b, as far as bfloat16 tells.

    With u = 2^-8, the roundoff of bfloat16, a kernel may round a, then a + b, to bfloat16: an error of
    u sum |x| (|a| + |a + b|). Summing n products in float32 loses at most n 2^-24 sum |x| (|a| + |b|), and rounding the
    result y loses u |y|. The factor 1 + 2^-6 covers terms of second order (u of these errors).
    """
    part, offset = parts
    weight = part + offset
    for rows in ROWS:
        input = _bfloat16(rows, part.shape[1], draw=draw)
        real = input.double()
        exact, magnitude = real @ weight.t(), real.abs() @ (part.abs() + offset.abs()).t()
        rounded_weight = real.abs() @ (part.abs() + weight.abs()).t()
        bound = BFLOAT16_ROUNDOFF * (rounded_weight + exact.abs()) + part.shape[1] * FLOAT32_ROUNDOFF * magnitude
        if not bool(((kernel(input).cpu().double() - exact).abs() <= (1 + 2**-6) * bound).all()):
            return False
    return True


def _bfloat16(*shape: int, draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu").to(torch.bfloat16)


# ---------------------------------------------------------------------------------------------------------- the verdict


BOTH, CPU = ("cpu", "cuda"), ("cpu",)
FLOATS, DEQUANTIZED, SLOW = "exact float32 products", "dequantised weights", "integer operations, several times slower"
UNPACKING = "unpacking of int4 and int8 (torch quantized::embedding_bag_4bit_unpack)"
INT8 = Kernel("int8 x int8 (torch._int_mm)", f"FBGEMM's, else {FLOATS}", BOTH, _int8_is_correct)
FBGEMM_INT8 = Kernel("int8 x int8 in halves (FBGEMM)", f"{FLOATS}, about 2 times slower", CPU, _fbgemm_is_correct)
INT4_WEIGHT = Kernel("int4 weights (torch _weight_int4pack_mm)", DEQUANTIZED, BOTH, _int4_is_correct)
INT8_WEIGHT = Kernel("int8 weights (torch._weight_int8pack_mm)", DEQUANTIZED, CPU, _int8_weight_is_correct)
UNPACK = Kernel(UNPACKING, SLOW, CPU, _unpacking_is_correct)
KERNELS = (INT8, FBGEMM_INT8, INT4_WEIGHT, INT8_WEIGHT, UNPACK)


@torch.compiler.assume_constant_result  # a graph that asks would break, and compare anew
def is_trusted(kernel: Kernel, device: torch.device) -> bool:
    """Whether a kernel computes right on a device; compared at the first question (milliseconds), then remembered.

    Remembered for this device, these functions of PyTorch and what chooses among a CPU's kernels: `SETTINGS`, whether
    oneDNN is on, threads.
    """
    return _verdict(kernel, device, circumstances())


def circumstances() -> tuple[object, ...]:
    """What decides which code of PyTorch and oneDNN runs on the CPU, and how fast."""
    functions = (torch._int_mm, torch._weight_int8pack_mm)
    cpu = (torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.enabled, torch.get_num_threads())
    return functions, cpu, tuple(map(os.environ.get, SETTINGS))


@lru_cache(maxsize=64)
def _verdict(kernel: Kernel, device: torch.device, *_: object) -> bool:
    if device.type not in kernel.devices:
        return False
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            return kernel.is_correct(device)
    except (RuntimeError, NotImplementedError, AttributeError):  # this build or device has no such kernel
        return False
