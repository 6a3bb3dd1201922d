"""Where `torch._int_mm` is wrong or slow, int8 is multiplied by FBGEMM in halves, or as float32: exact either way."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from int8_oracle import full_range, in_int64

from edgequant.evaluation.backends.footprint import resident_bytes
from edgequant.quantization.layers import kernels, trusted_kernels
from edgequant.quantization.layers.integer import IntegerLinear
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.layers.trusted_kernels import FBGEMM_INT8, halves_of, is_trusted
from edgequant.quantization.layers.unpacking.int8_products import HalvedProduct
from edgequant.quantization.scheme import parse_scheme

CPU = torch.device("cpu")
SHAPES = [(1, 64, 48), (2, 2048, 4), (2, 2049, 5), (16, 576, 192), (3, 33, 7), (5, 5000, 40), (1, 1, 1)]

needs_fbgemm = pytest.mark.skipif(not is_trusted(FBGEMM_INT8, CPU), reason="FBGEMM's int8 product is not of use here")


@pytest.fixture
def without_int_mm(monkeypatch):
    monkeypatch.setattr(kernels, "multiplies_int8_fast", lambda _: False)


def layer_of_codes(rows: int, features: int) -> IntegerLinear:
    given = parse_scheme("w8a8")
    assert given.weight is not None
    packed = PackedWeight(rows, features, given.weight)
    packed.codes.copy_(full_range(rows, features, 3))
    packed.scale.fill_(0.01)
    return IntegerLinear(packed, None, given.activation)


@needs_fbgemm
@pytest.mark.parametrize("extreme", [None, -128, 127])
@pytest.mark.parametrize("shape", SHAPES)
def test_halves_have_the_product_of_the_whole(shape, extreme):
    """Whole extremes saturate 16 bits in pairs; 2,048 inputs' are the last integers that float32 holds."""
    rows, inputs, outputs = shape
    left, codes = full_range(rows, inputs, 0), full_range(outputs, inputs, 1)
    codes[0] = -128
    if extreme is not None:
        left.fill_(extreme)
    product = HalvedProduct.of(codes).product(halves_of(left))
    assert product.dtype == torch.int32
    assert np.array_equal(product.numpy(), in_int64(left, codes))


@needs_fbgemm
def test_a_copy_multiplies_alike_and_pytorchs_engine_stays_as_it_was():
    engine = torch.backends.quantized.engine
    codes, left = full_range(48, 96, 0), full_range(4, 96, 1)
    product = HalvedProduct.of(codes)
    halves = halves_of(left)
    assert torch.equal(copy.deepcopy(product).product(halves), product.product(halves))
    assert torch.backends.quantized.engine == engine


@needs_fbgemm
def test_a_layers_second_copy_is_used_counted_and_made_anew_for_other_integers(without_int_mm, monkeypatch):
    layer, values = layer_of_codes(64, 96), torch.randn(2, 96)
    before = resident_bytes(layer)
    monkeypatch.setattr(kernels, "exact_int8_product", lambda *_: pytest.fail("as float32"))
    with torch.no_grad():
        first = layer(values)
        assert resident_bytes(layer) >= before + 64 * 96
        layer.packed.codes.neg_()
        second = layer(values)
        layer._kernel_cache.clear()
        assert torch.equal(layer(values), second) and not torch.equal(first, second)


@pytest.fixture
def nothing_compared():
    trusted_kernels._verdict.cache_clear()
    yield
    trusted_kernels._verdict.cache_clear()


@pytest.mark.parametrize("fault", ["wrong", "absent"])
def test_without_fbgemm_float32_multiplies(fault, without_int_mm, nothing_compared, monkeypatch):
    def absent(_codes: torch.Tensor) -> tuple[object, ...]:
        raise RuntimeError("no such engine")

    layer, values, real = layer_of_codes(64, 96), torch.randn(2, 96), trusted_kernels.fbgemm_kernel
    if fault == "wrong":
        monkeypatch.setattr(trusted_kernels, "fbgemm_kernel", lambda *given: real(*given) + 1)
    else:
        monkeypatch.setattr(trusted_kernels, "fbgemm_layout", absent)
    calls = []
    exact = kernels.exact_int8_product
    monkeypatch.setattr(kernels, "exact_int8_product", lambda *given: calls.append(1) or exact(*given))
    with torch.no_grad():
        found = layer(values)
        codes = layer.quantized_input(values)
        real_inputs = (codes.codes - codes.zero_point) * codes.scale
        assert calls == [1] and not is_trusted(FBGEMM_INT8, CPU)
        torch.testing.assert_close(found, real_inputs @ layer.dequantized_weight().t())


@pytest.mark.parametrize("rows", [1, 64])
def test_the_product_chosen_takes_no_longer_than_the_one_without_a_kernel(rows):
    """`torch._int_mm` is right without AVX-512, and 2 to 20 times slower than float32."""
    layer, values = layer_of_codes(512, 640), torch.randn(rows, 640)
    codes = layer.packed.codes
    with torch.inference_mode():
        input = layer.quantized_input(values)
        of_chosen = least_time(lambda: kernels.int8_product(input, codes, layer._kernel_cache))
        assert of_chosen <= 1.5 * least_time(lambda: kernels.exact_int8_product(input.int8, codes))


def least_time(run: Callable[[], object]) -> int:
    times = []
    for _ in range(30):
        start = time.process_time_ns()
        run()
        times.append(time.process_time_ns() - start)
    return min(times)
