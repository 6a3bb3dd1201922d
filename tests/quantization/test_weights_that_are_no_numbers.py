"""NaN, infinity and what overflows a storage type: refused by the tensor's name before work, never a finite integer."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import edgequant
from edgequant import models
from edgequant.errors import UserError
from edgequant.export.gguf.write import write_gguf
from edgequant.models.devices import is_finite
from edgequant.quantization.layers.convert import calibrate, convert, prepare
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme

LAYER = "model.layers.1.mlp.up_proj"
SCHEMES = ["w4a8-g32+emb4", "w8a8-static", "q8_0", "q4_0", "q4_1", "w2-g32", "w8"]


@pytest.fixture
def tiny(_tiny):
    return copy.deepcopy(_tiny.model).eval()


def spoil(model, value, layer=LAYER):
    with torch.no_grad():
        model.get_submodule(layer).weight[3, 5] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_that_is_no_number_is_refused_by_name_before_any_layer_is_replaced(tiny, scheme, value):
    spoil(tiny, value)
    with pytest.raises(UserError, match=rf"must be finite, got .* in {LAYER}"):
        quantize(tiny, parse_scheme(scheme), calibration=[torch.zeros(1, 16, dtype=torch.long)])
    assert type(tiny.get_submodule(LAYER)) is torch.nn.Linear


def test_an_embeddings_row_that_no_text_reaches_is_looked_at_too(tiny):
    spoil(tiny, math.nan, "model.embed_tokens")
    for scheme in ("w8+emb8", "w8"):  # the latter leaves the embedding as it is
        with pytest.raises(UserError, match=r"must be finite, got 1 of .* in model\.embed_tokens"):
            prepare(tiny, parse_scheme(scheme))


@pytest.mark.parametrize(
    ("scheme", "beyond", "within"),
    [("w4-g32", 2e6, 4e5), ("q8_0", 9e6, 8e6), ("q4_0", 6e5, 5e5), ("q4_1", -7e4, 7e4), ("w8a8-static", 3e38, 1e30)],
)
def test_a_weight_whose_scale_float16_cannot_hold_is_refused(tiny, scheme, beyond, within):
    """A scale of w4 is the range over 15, of q8_0 the largest over 127, of q4_0 over 8; q4_1 stores the minimum."""
    parsed = parse_scheme(scheme)
    if parsed.spec_of(LAYER, 128).scale_dtype == "float16":
        with pytest.raises(UserError, match=rf"scales within float16, got .* in {LAYER}"):
            prepare(spoil(copy.deepcopy(tiny), beyond), parsed)
    model = spoil(tiny, within)
    prepare(model, parsed)
    assert is_finite(model.get_submodule(LAYER).quantizer(model.get_submodule(LAYER).weight))


def test_a_training_that_diverged_is_not_converted(tiny):
    prepare(tiny, parse_scheme("w4-g32"))
    spoil(tiny, math.nan)
    with pytest.raises(UserError, match=rf"must be finite, got nan in {LAYER}"):
        convert(tiny)


def test_learned_scales_that_are_no_numbers_are_not_converted(tiny):
    prepare(tiny, parse_scheme("w4-g32"), learnable_scales=True)
    for parameter in tiny.get_submodule(LAYER).quantizer.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(UserError, match=rf"scales must be finite, .* in {LAYER}"):
        convert(tiny)


@pytest.mark.parametrize("observer", ["moving_average_minmax", "minmax", "percentile", "mse"])
def test_activations_that_overflow_are_refused_by_layer_whatever_observes_them(tiny, observer):
    """Weights within float32 whose product is not."""
    with torch.no_grad():
        tiny.get_submodule("model.layers.0.mlp.up_proj").weight.fill_(1e38)
        tiny.get_submodule("model.layers.0.mlp.gate_proj").weight.fill_(1e30)
    prepare(tiny, parse_scheme("w8a8-static"), observer=observer)
    with pytest.raises(UserError, match=r"must be finite, got NaN or infinity at model\.layers\.0\.mlp\.down_proj"):
        calibrate(tiny, [torch.arange(16)[None]])


@pytest.mark.parametrize("method", ["gptq", "awq", "signround"])
def test_methods_that_calibrate_name_the_block_whose_output_overflows(tiny, method):
    with torch.no_grad():
        tiny.get_submodule("model.layers.0.mlp.up_proj").weight.fill_(1e38)
        tiny.get_submodule("model.layers.0.mlp.gate_proj").weight.fill_(1e30)
    with pytest.raises(UserError, match=r"must be finite, .* at the output of model\.layers\.0"):
        quantize(tiny, parse_scheme("w8a8-static"), calibration=[torch.arange(16)[None]], method=method)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_load_looks_at_every_weight(tiny, _tiny, tmp_path, value):
    """A norm's, which no scheme quantises."""
    with torch.no_grad():
        tiny.get_submodule("model.norm").weight[0] = value
    tiny.save_pretrained(tmp_path)
    _tiny.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"must be finite, got 1 of 128 .* in model\.norm\.weight"):
        edgequant.load(str(tmp_path))


def test_a_checkpoints_scale_that_is_no_number_is_found_when_it_is_loaded(tiny, _tiny, tmp_path):
    from edgequant.models.devices import check_finite

    quantize(tiny, parse_scheme("w4-g32"))
    check_finite(tiny)
    tiny.get_submodule(LAYER).packed.scale[0, 0] = math.inf
    with pytest.raises(UserError, match=rf"in {LAYER}\.packed_weight\.scale"):
        check_finite(tiny)


def test_what_float16_cannot_hold_is_not_cast_to_infinity(tiny):
    spoil(tiny, 7e4)
    with pytest.raises(UserError, match=rf"within float16's 65,504 for dtype float16, got 70,000 in {LAYER}\.weight"):
        models.cast(tiny, "float16")
    assert models.cast(spoil(tiny, 65504.0), "float16").get_submodule(LAYER).weight[3, 5] == 65504
    models.cast(spoil(tiny.float(), 7e4), "bfloat16")


def test_a_model_loaded_in_float16_that_cannot_hold_it_is_refused(tiny, _tiny, tmp_path):
    spoil(tiny, 7e4).save_pretrained(tmp_path)
    _tiny.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"in {LAYER}\.weight; .* dtype float32 or bfloat16"):
        edgequant.load(str(tmp_path), dtype="float16")
    assert edgequant.load(str(tmp_path), dtype="float32").model.get_submodule(LAYER).weight[3, 5] == 7e4


@pytest.mark.parametrize(("format", "value"), [("f16", 7e4), ("q8_0", 9e6), ("q4_0", 6e5), ("q5_1", -7e4)])
def test_a_gguf_file_holds_no_infinity(tiny, _tiny, tmp_path, format, value):
    loaded = _tiny._replace(model=spoil(tiny, value))
    with pytest.raises(UserError, match=rf"for format {format}, .* in {LAYER}\.weight; use bf16 or f32"):
        write_gguf(loaded, tmp_path / "model.gguf", format)
    assert not list(tmp_path.iterdir())
    write_gguf(loaded, tmp_path / "model.gguf", "f32")


def test_masks_of_infinity_are_no_weights():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

    models.devices.check_finite(Masked())
    assert is_finite(torch.zeros(0)) and is_finite(torch.arange(3)) and not is_finite(torch.tensor([1.0, math.nan]))
