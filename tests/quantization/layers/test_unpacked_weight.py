"""Weights unpacked fast are the dequantised ones to the bit, and what decoding keeps of them is counted."""

from __future__ import annotations

import pytest
import torch

from edgequant.evaluation.backends.footprint import resident_bytes
from edgequant.quantization.arithmetic.affine import quantize_weight
from edgequant.quantization.layers import kernels, trusted_kernels
from edgequant.quantization.layers.convert import convert, prepare
from edgequant.quantization.layers.integer import IntegerLinear
from edgequant.quantization.layers.packed_weight import PackedWeight
from edgequant.quantization.layers.trusted_kernels import UNPACK, is_trusted
from edgequant.quantization.layers.unpacking.fused_weight import FusedWeight
from edgequant.quantization.layers.unpacking.unpacked_weight import StreamedWeight
from edgequant.quantization.scheme import parse_scheme

ROWS, FEATURES = 96, 192
STREAMED = ["w4-g32", "w4-g64-sym", "w4", "w4-sym", "q4_0", "q4_1", "q8_0", "w8", "w8-sym", "w8-g32"]
FUSED = ["w4-g32", "w4-g64-sym", "q4_0", "q4_1", "q8_0", "w8-g32", "w3-g64", "w3-g64-sym", "w2-g64", "w2-g64-sym"]
FUSED += ["w1.58-g64", "w5-g64", "w6-g32", "w7-g96"]
EVERY = sorted({*STREAMED, *FUSED, "w3", "w5", "w2-sym", "w1.58"})


def packed_by(scheme: str) -> PackedWeight:
    """Rows of very different sizes, with zero points at either end."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, FEATURES, generator=draw) * torch.randn(ROWS, 1, generator=draw).exp() / 50
    weight[0], weight[1], weight[2] = weight[0].abs(), -weight[1].abs(), 0
    spec = parse_scheme(scheme).weight
    assert spec is not None
    return PackedWeight.of(quantize_weight(weight, spec), ROWS, FEATURES, spec)


def linear_of(scheme: str, dtype: torch.dtype = torch.float32) -> IntegerLinear:
    return IntegerLinear(packed_by(scheme), None, None).to(dtype)


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [*((StreamedWeight, scheme) for scheme in STREAMED), *((FusedWeight, scheme) for scheme in FUSED)],
)
def test_a_weight_unpacked_fast_is_the_dequantized_one_to_the_bit(kind, scheme):
    packed = packed_by(scheme)
    unpacked = kind.of(packed)
    assert unpacked is not None
    assert torch.equal(unpacked.real(slice(0, ROWS)), packed.dequantized())
    assert torch.equal(unpacked.real(slice(5, 9)), packed.dequantized()[5:9])


@pytest.mark.parametrize("scheme", EVERY)
@pytest.mark.parametrize("rows", [1, 4, 5, 40])
def test_a_float32_layer_computes_the_product_in_float32_at_every_number_of_rows(scheme, rows):
    layer, values = linear_of(scheme), torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(1))
    weight = layer.dequantized_weight().double()
    bound = FEATURES * 2.0**-23 * (values.double().abs() @ (weight.abs() + 256 * weight.abs().amax(1, True)).T)
    with torch.no_grad():
        assert ((layer(values).double() - values.double() @ weight.T).abs() <= bound.clamp(max=1e-4)).all()


def test_a_large_weight_is_unpacked_in_pieces(monkeypatch):
    values = torch.randn(2, FEATURES)
    with torch.no_grad():
        whole = [linear_of(scheme)(values) for scheme in EVERY]
        monkeypatch.setattr("edgequant.quantization.layers.unpacking.unpacked_weight.PIECE", 7 * FEATURES)
        for scheme, expected in zip(EVERY, whole, strict=True):
            torch.testing.assert_close(linear_of(scheme)(values), expected, rtol=1e-5, atol=1e-6)
            assert linear_of(scheme)(values.repeat(9, 1)).shape == (18, ROWS)


@pytest.mark.parametrize("scheme", ["w4-g32", "q4_1", "q8_0", "w3-g64"])
def test_an_unpacking_that_lies_is_not_used(scheme, monkeypatch):
    layer, values = linear_of(scheme), torch.randn(2, FEATURES)
    honest = trusted_kernels.unpack_fused
    monkeypatch.setattr(trusted_kernels, "unpack_fused", lambda rows, bits: honest(rows, bits) + 2.0**-6)
    trusted_kernels._verdict.cache_clear()
    try:
        assert not is_trusted(UNPACK, torch.device("cpu"))
        with torch.no_grad():
            expected = torch.nn.functional.linear(values, layer.dequantized_weight())
            torch.testing.assert_close(layer(values), expected, rtol=1e-5, atol=1e-6)
    finally:
        trusted_kernels._verdict.cache_clear()


def test_integers_that_change_in_place_are_unpacked_anew():
    layer, values = linear_of("w3-g64"), torch.randn(1, FEATURES)
    with torch.no_grad():
        layer(values)
        layer.packed_weight.codes.copy_(layer.packed_weight.codes.flip(0))
        expected = torch.nn.functional.linear(values, layer.dequantized_weight())
        torch.testing.assert_close(layer(values), expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_input_after_a_pass_in_inference_mode():
    for scheme in EVERY:
        layer, values = linear_of(scheme), torch.randn(2, FEATURES)
        with torch.inference_mode():
            layer(values)
        given = values.requires_grad_()
        layer(given).sum().backward()
        torch.testing.assert_close(given.grad, layer.dequantized_weight().sum(0).expand(2, -1), rtol=1e-4, atol=1e-3)


def test_a_layer_under_autocast_multiplies_as_float32():
    layer, values = linear_of("w4-g32"), torch.randn(1, FEATURES)
    with torch.no_grad():
        expected = layer(values)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(values), expected)


@pytest.mark.parametrize(
    ("scheme", "bits"),  # codes, scale and offset side by side, and the residue of offsets
    [("w4-g32", 4 + 2), ("w4-g64-sym", 4 + 0.5), ("q4_0", 5), ("q8_0", 10), ("w3-g64", 4 + 1), ("w8", 0), ("w4", 0)],
)
def test_float32_keeps_so_many_bits_a_weight_beside_the_checkpoints_and_they_are_counted(scheme, bits):
    layer = linear_of(scheme)
    before = resident_bytes(layer)
    with torch.no_grad():
        layer(torch.randn(1, FEATURES))
    kept = 8 * (resident_bytes(layer) - before) / (ROWS * FEATURES)
    assert bits <= kept <= bits + 40 / FEATURES, "of one scale for each output, that and a zero point are kept"


def test_a_model_that_decodes_counts_what_its_layers_keep(tiny):
    prepare(tiny.model, parse_scheme("w4-g32"))
    convert(tiny.model)
    before = resident_bytes(tiny.model)
    with torch.no_grad():
        tiny.model(input_ids=torch.tensor([[1]]))
    assert resident_bytes(tiny.model) > before


def test_a_slow_int4_kernel_gives_way_to_unpacking(monkeypatch):
    layer, values = linear_of("w4-g32", torch.bfloat16), torch.randn(1, FEATURES).to(torch.bfloat16)
    monkeypatch.setattr(kernels, "reads_integers_fast", lambda _: False)
    monkeypatch.setattr(kernels, "int4_kernel", lambda *_: pytest.fail("used"))
    with torch.no_grad():
        expected = values.float() @ layer.dequantized_weight().T
        torch.testing.assert_close(layer(values).float(), expected, rtol=2**-8, atol=1e-4)
