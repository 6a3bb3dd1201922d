"""Integer products are exact on every CPU: a kernel that computes wrong is found out and not used."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from int8_oracle import full_range, in_int64

from edgequant.quantization.layers import kernels, trusted_kernels
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.layers.quantized_input import QuantizedInput, Range
from edgequant.quantization.layers.trusted_kernels import INT4_WEIGHT, INT8, INT8_WEIGHT, KERNELS, SETTINGS, is_trusted
from edgequant.quantization.scheme import parse_scheme
from edgequant.workflows.checks.machine import integer_kernels

CPU = torch.device("cpu")
SHAPES = [(1, 64, 48), (1, 576, 192), (3, 33, 7), (16, 1536, 576), (64, 576, 1536), (5, 2500, 40), (1, 1, 1)]

# oneDNN and PyTorch read these once, so each needs a process of its own.
IN_A_FRESH_PROCESS = """
import numpy as np, torch
from edgequant.quantization.layers import kernels
from edgequant.quantization.layers.quantized_input import QuantizedInput, Range

one = Range(torch.ones(1), torch.zeros(1))
draw = np.random.default_rng(0)
for rows, inputs, outputs in SHAPES:
    left, right = (draw.integers(-128, 128, (n, inputs), dtype=np.int8) for n in (rows, outputs))
    left[0], right[0], right[-1] = 127, 127, -128
    for a, b in ((left, right), (np.full_like(left, -128), right), (left, np.full_like(right, -128))):
        found = kernels.int8_product(QuantizedInput.of(torch.from_numpy(a).float(), one), torch.from_numpy(b), {})
        assert found.dtype == torch.int32
        assert np.array_equal(found.numpy(), a.astype(np.int64) @ b.T.astype(np.int64)), (rows, inputs, outputs)
"""


def of_codes(codes: torch.Tensor) -> QuantizedInput:
    """An input whose integers are these."""
    one, zero = torch.ones(1, device=codes.device), torch.zeros(1, device=codes.device)
    return QuantizedInput.of(codes.float(), Range(one, zero))


def saturating(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """What oneDNN does without VNNI: u8 x s8 in pairs of neighbours, each pair's sum held in 16 bits."""
    products = (left.int() + 128)[:, None] * right.t().int()[None]
    pairs = torch.nn.functional.pad(products, (0, left.shape[1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
    return pairs.clamp(-(2**15), 2**15 - 1).sum(-1, dtype=torch.int32) - 128 * right.t().sum(1, dtype=torch.int32)


def off_by_one_for_many_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    product = (left.int() @ right.int()).to(torch.int32)
    return product + 1 if left.shape[0] >= 64 else product


@pytest.mark.long
@pytest.mark.parametrize(
    "setting",
    ["", "ONEDNN_MAX_CPU_ISA=AVX2", "ONEDNN_MAX_CPU_ISA=AVX512_CORE", "ATEN_CPU_CAPABILITY=default"],
    ids=lambda setting: setting or "unset",
)
def test_an_int8_product_of_full_range_integers_is_numpys_int64_product(setting, environment):
    name, _, value = setting.partition("=")
    script = IN_A_FRESH_PROCESS.replace("SHAPES", repr(SHAPES))
    environment = {key: text for key, text in environment.items() if key not in SETTINGS}
    environment |= {name: value} if name else {}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [*SHAPES, (0, 8, 3), (2, 1024, 4), (2, 1025, 513)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_product_without_an_integer_kernel_is_exact(shape, seed):
    rows, inputs, outputs = shape
    left, right = full_range(rows, inputs, seed), full_range(outputs, inputs, seed + 10)
    left[:1], right[0] = -128, -128  # 1,024 of these are 2^24, the last integer before float32 leaves one out
    found = kernels.exact_int8_product(left, right)
    assert found.dtype == torch.int32 and np.array_equal(found.numpy(), in_int64(left, right))


def test_the_product_without_an_integer_kernel_is_exact_under_autocast():
    left, right = full_range(4, 576, 0), full_range(20, 576, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(kernels.exact_int8_product(left, right).numpy(), in_int64(left, right))


@pytest.mark.parametrize("lie", [saturating, off_by_one_for_many_rows])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-static"])
def test_a_lying_int8_kernel_is_not_used(lie, scheme, monkeypatch):
    layer, values = layer_of(scheme), torch.randn(64, 96, generator=torch.Generator().manual_seed(2)) * 3
    codes = []
    real_product = kernels.int8_product
    monkeypatch.setattr(
        kernels,
        "int8_product",
        lambda *to: codes.append((to[0].int8, to[1], real_product(*to).clone())) or codes[-1][-1].clone(),
    )
    with torch.no_grad():
        monkeypatch.setattr(torch, "_int_mm", exactly)
        honest = layer(values)
        monkeypatch.setattr(torch, "_int_mm", lie)
        assert not is_trusted(INT8, CPU)
        found = layer(values)
    assert torch.equal(found, honest)
    left, right, product = codes[-1]
    assert np.array_equal(product.numpy(), in_int64(left, right))
    assert not torch.equal(lie(left, right.t()), product), "the lie would not have shown"


def exactly(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.long() @ right.long()).to(torch.int32)


def layer_of(scheme: str, inputs: int = 96, outputs: int = 48) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(inputs, outputs))
    prepare(model, parse_scheme(scheme))
    if has_static_ranges(model):
        calibrate(_TakesIds(model), [torch.randn(4, inputs)])
    convert(model)
    return model[0]


class _TakesIds(torch.nn.Module):
    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.inside(input_ids)


def test_an_exact_kernel_is_used(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: calls.append(a.shape) or exactly(a, b))
    monkeypatch.setattr(kernels, "multiplies_int8_fast", lambda _: True)
    assert is_trusted(INT8, CPU)
    calls.clear()
    kernels.int8_product(of_codes(full_range(2, 64, 0)), full_range(3, 64, 1), {})
    assert calls == [(2, 64)]


def test_a_kernel_is_compared_once(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: calls.append(a.shape) or exactly(a, b))
    is_trusted(INT8, CPU)
    compared = len(calls)
    assert compared > 0
    for _ in range(3):
        is_trusted(INT8, CPU)
    assert len(calls) == compared


def test_a_kernel_that_this_build_lacks_is_not_trusted(monkeypatch):
    def absent(*_: object) -> torch.Tensor:
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(torch, "_int_mm", absent)
    left, right = full_range(4, 64, 0), full_range(5, 64, 1)
    assert np.array_equal(kernels.int8_product(of_codes(left), right, {}).numpy(), in_int64(left, right))


@pytest.mark.parametrize(
    ("scheme", "kernel", "function"),
    [("w4-g32", INT4_WEIGHT, "int4_kernel"), ("w8", INT8_WEIGHT, "int8_weight_kernel")],
)
def test_a_lying_weight_only_kernel_leaves_the_work_to_dequantizing(scheme, kernel, function, monkeypatch):
    layer = layer_of(scheme).to(torch.bfloat16)
    values = torch.randn(1, 96).to(torch.bfloat16)
    real = getattr(trusted_kernels, function)

    def lie(*arguments: object) -> torch.Tensor:
        """One part in 16 of each output is lost, four times what bfloat16 may lose twice."""
        return real(*arguments) * 0.9375

    for module in (trusted_kernels, kernels):
        monkeypatch.setattr(module, function, lie)
    with torch.no_grad():
        expected = torch.nn.functional.linear(values.float(), layer.dequantized_weight(), layer.bias.float())
        trusted_kernels._verdict.cache_clear()
        assert not is_trusted(kernel, CPU)
        torch.testing.assert_close(layer(values).float(), expected, rtol=2**-8, atol=1e-4)
    trusted_kernels._verdict.cache_clear()


def test_comparing_draws_nothing_from_the_random_state_and_leaves_it_as_it_was():
    trusted_kernels._verdict.cache_clear()
    before = torch.random.get_rng_state()
    for kernel in KERNELS:
        is_trusted(kernel, CPU)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize(("scheme", "dtype"), [("w8a8", torch.float32), ("w4-g32", torch.bfloat16)])
def test_a_compiled_layer_is_one_graph_that_compares_nothing(scheme, dtype, lies, monkeypatch):
    monkeypatch.setattr(trusted_kernels, "_verdict", lambda *_: not lies)
    layer, values = layer_of(scheme).to(dtype), torch.randn(2, 96).to(dtype)
    with torch.no_grad():
        expected = layer(values)
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="eager", fullgraph=True)(values)
        # where the int4 kernel is slow, few rows are multiplied as float32, which a graph does not choose
        apart = 0.0 if dtype == torch.float32 else float(expected.abs().max()) / 2**7
        torch.testing.assert_close(compiled, expected, rtol=0, atol=apart)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [INT8, INT4_WEIGHT], ids=lambda kernel: kernel.name)
def test_cudas_kernels_are_trusted(kernel):
    assert is_trusted(kernel, torch.device("cuda:0"))


@pytest.mark.gpu
def test_cudas_int8_product_is_numpys_with_the_kernel_and_without():
    for rows, inputs, outputs in SHAPES:
        left, right = full_range(rows, inputs, 0), full_range(outputs, inputs, 1)
        by_kernel = kernels.int8_product(of_codes(left.cuda()), right.cuda(), {})
        for product in (by_kernel, kernels.exact_int8_product(left.cuda(), right.cuda())):
            assert np.array_equal(product.cpu().numpy(), in_int64(left, right))


def test_doctor_names_the_kernels_trusted_and_what_takes_the_others_place(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", saturating)
    trusted, *notes = integer_kernels()
    assert trusted.state == "ok" and INT4_WEIGHT.name in trusted.found and INT8.name not in trusted.found
    lying = [note for note in notes if INT8.name in note.found]  # on the CPU, and on each GPU that there is
    assert len(lying) == 1 + torch.cuda.device_count()
    assert all(note.state == "note" and "exact float32 products" in note.found for note in lying)
