"""Integer layers: int32 accumulation as in Jacob et al. 2017, equation 7; the int4 kernel; what a cast leaves alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from edgequant.quantization.layers import kernels
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.layers.integer import IntegerLinear
from edgequant.quantization.scheme import parse_scheme


class OneLinear(torch.nn.Module):
    """A module tree with a single linear, as `prepare` takes it."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(inputs, outputs, bias=bias)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.linear(input_ids)


def converted(scheme: str, inputs: int, outputs: int, batches: list[torch.Tensor], bias: bool = True) -> IntegerLinear:
    torch.manual_seed(0)
    model = OneLinear(inputs, outputs, bias).eval()
    prepare(model, parse_scheme(scheme))
    if has_static_ranges(model):
        calibrate(model, batches)
    convert(model)
    return model.linear


def equation_7(layer: IntegerLinear, values: np.ndarray) -> np.ndarray:
    """N Z1 Z2 - Z1 sum q2 - Z2 sum q1 + sum q1 q2 in int32, then S1 S2 times it, plus the bias, in float32.

    Reads nothing but what the checkpoint stores.
    """
    weight = layer.packed_weight
    q2, s2 = weight.codes.numpy().astype(np.int32), weight.scale.numpy()[:, 0]
    z2 = weight.zero_point.numpy()[:, 0].astype(np.int32)
    s1, z1 = layer.input_scale.numpy()[0], layer.input_zero_point.numpy()[0].astype(np.int32)
    q1 = np.clip(np.rint(values / s1) + np.float32(z1), -128, 127).astype(np.int32)
    terms = np.int32(q1.shape[1]) * z1 * z2[None] - z1 * q2.sum(1, dtype=np.int32)[None]
    terms = terms - z2[None] * q1.sum(1, dtype=np.int32)[:, None] + q1 @ q2.T
    assert terms.dtype == np.int32
    return terms.astype(np.float32) * (s1 * s2)[None] + layer.bias.detach().numpy()[None]


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (576, 192), (1536, 33)])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_static_int8_layer_is_bit_exact_with_equation_7_in_numpy(rows, inputs, outputs, offset):
    values = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)) + offset
    layer = converted("w8a8-static", inputs, outputs, [values[:1] * 0.8 + 0.1])  # some inputs lie outside the range
    with torch.no_grad():
        assert np.array_equal(layer(values).numpy(), equation_7(layer, values.numpy()))


def test_equation_7_of_the_test_agrees_with_real_arithmetic():
    """The oracle itself: S1 S2 sum (q1 - Z1)(q2 - Z2) in float64."""
    values = torch.randn(5, 96)
    layer = converted("w8a8-static", 96, 32, [values])
    scale, zero = layer.input_scale.double(), layer.input_zero_point.double()
    codes = (torch.round(values / layer.input_scale) + zero).clamp(-128, 127)
    expected = (codes - zero) * scale @ layer.dequantized_weight().double().T + layer.bias.double()
    np.testing.assert_allclose(equation_7(layer, values.numpy()), expected.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-static", "w8a8-sym"])
def test_int8_layers_multiply_integers_and_never_dequantize_the_weight(scheme, monkeypatch):
    values = torch.randn(4, 64)
    layer = converted(scheme, 64, 32, [values])
    seen = []
    product = kernels.int8_product
    monkeypatch.setattr(
        kernels, "int8_product", lambda a, b, *to: seen.append((a.int8.dtype, b.dtype)) or product(a, b, *to)
    )
    monkeypatch.setattr(type(layer.packed_weight), "dequantized", lambda *_: pytest.fail("dequantised"))
    with torch.no_grad():
        layer(values)
    assert seen == [(torch.int8, torch.int8)]


def test_dynamic_tokens_match_the_dequantized_product():
    values = torch.randn(2, 7, 128) * torch.tensor([0.01, 100.0])[:, None, None]
    layer = converted("w8a8", 128, 40, [])
    real = values.numpy()
    low, high = np.minimum(real.min(-1, keepdims=True), 0), np.maximum(real.max(-1, keepdims=True), 0)
    scale = (high - low) / 255
    zero = np.round(-128 - low / scale)
    inputs = (np.clip(np.round(real / scale) + zero, -128, 127) - zero) * scale
    expected = inputs @ layer.dequantized_weight().numpy().T + layer.bias.detach().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(layer(values).numpy(), expected, rtol=1e-4, atol=1e-4 * scale.max())


@pytest.mark.parametrize("scheme", ["w4-g32", "w4-g64", "w4-g128", "w4a8-g32", "w4-g32-sym", "q8_0", "w8-g64"])
@pytest.mark.parametrize("rows", [1, 4])
def test_int4_decode_kernel_agrees_with_the_dequantized_product(scheme, rows, monkeypatch):
    monkeypatch.setattr(kernels, "reads_integers_fast", lambda _: True)  # not so under ATEN_CPU_CAPABILITY=default
    layer = converted(scheme, 256, 64, []).to(torch.bfloat16)
    values = torch.randn(rows, 256).to(torch.bfloat16)
    with torch.no_grad():
        single = layer(values)
        assert "int4" in layer._kernel_cache, "the kernel was not used"
        many = layer(values.repeat(16, 1))[:rows]  # beyond the kernel's rows: dequantised first
    # bfloat16 keeps 8 bits: of scales and offsets in the kernel's layout, and of the result
    spread = float(many.float().std())
    torch.testing.assert_close(single.float(), many.float(), rtol=2**-6, atol=0.03 * spread)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", ["q4_0", "w4-g32", "w3-g64", "w8", "w8a8", "w8a8-static", "w4a8-g32", "w4-g64-sym"])
def test_rows_that_lie_apart_in_memory_give_what_they_give_side_by_side(scheme, dtype, device):
    """Each sequence's last state is such a row; CUDA's int4 kernel took none of them."""
    states = torch.randn(4, 3, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = converted(scheme, 256, 64, [states[:, -1].float()]).to(device)
    layer = layer if dtype == torch.float32 else layer.to(dtype)
    apart = states.to(device)[:, -1]
    assert not apart.is_contiguous()
    with torch.inference_mode():
        assert torch.equal(layer(apart), layer(apart.contiguous()))
        assert torch.equal(layer(apart[None])[0], layer(apart.contiguous()))


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["w4-g32", "w4-g64", "w4-g128", "w4a8-g32", "w4-g32-sym"])
def test_int4_decode_kernel_on_cuda_agrees_with_the_cpu(scheme):
    layer = converted(scheme, 256, 64, []).to(torch.bfloat16)
    values = torch.randn(8, 256).to(torch.bfloat16)
    with torch.no_grad():
        expected = layer(values)
        on_gpu = copy.deepcopy(layer).cuda()
        found = on_gpu(values.cuda()).cpu()
    assert "int4" in on_gpu._kernel_cache, "the kernel was not used"
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-6, atol=0.03 * float(expected.float().std()))


def test_int4_decode_kernel_is_left_alone_where_its_layout_does_not_fit():
    layer = converted("w4-g32", 64, 24, []).to(torch.bfloat16)  # 24 rows are no multiple of 16
    with torch.no_grad():
        layer(torch.randn(1, 64).to(torch.bfloat16))
    assert "int4" not in layer._kernel_cache


@pytest.mark.parametrize("scheme", ["w8a8-static+emb8", "w4a8-g32+emb4", "q4_1+emb4", "w3-g64", "w1.58-g64"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_leaves_integers_scales_and_zero_points_as_they_were(tiny, scheme, dtype):
    tokens = torch.randint(0, 256, (2, 32))
    prepare(tiny.model, parse_scheme(scheme))
    if has_static_ranges(tiny.model):
        calibrate(tiny.model, [tokens])
    convert(tiny.model)
    kept = {"codes", "scale", "zero_point", "minimum", "input_scale", "input_zero_point"}
    buffers = dict(tiny.model.named_buffers())
    before = {name: tensor.clone() for name, tensor in buffers.items() if name.rpartition(".")[2] in kept}
    after = dict(tiny.model.to(dtype).named_buffers())
    assert before
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name
    with torch.no_grad():
        assert tiny.model(input_ids=tokens).logits.dtype == dtype


def test_a_copied_model_keeps_its_tied_head_tied(tiny):
    prepare(tiny.model, parse_scheme("w4a8-g32+emb4"))
    convert(tiny.model)
    twin = copy.deepcopy(tiny.model)
    assert twin.lm_head.packed is twin.model.embed_tokens.packed_weight
    assert twin.lm_head.packed is not tiny.model.lm_head.packed


def test_only_the_rows_looked_up_are_dequantized(tiny):
    floating = tiny.model.model.embed_tokens.weight.detach().clone()
    prepare(tiny.model, parse_scheme("w4-g32+emb8"))
    convert(tiny.model)
    ids = torch.tensor([[3, 200, 3]])
    rows = tiny.model.model.embed_tokens(ids)
    step = (floating[ids].amax(-1).clamp(min=0) - floating[ids].amin(-1).clamp(max=0)) / 255
    assert rows.shape == (1, 3, 128)
    assert ((rows - floating[ids]).abs().amax(-1) <= 0.5001 * step).all()


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["w8a8-static", "w8a8", "w4a8-g32", "w4-g32"])
def test_cuda_computes_what_the_cpu_computes(scheme):
    values = torch.randn(5, 72)
    layer = converted(scheme.replace("g32", "g8"), 72, 40, [values])
    with torch.no_grad():
        expected = layer(values)
        found = copy.deepcopy(layer).cuda()(values.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
