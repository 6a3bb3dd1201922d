"""Conversion compares logits: integers that compute something else are refused, other arithmetic is not."""

from __future__ import annotations

from typing import Any

import pytest
import random_architectures
import torch
from random_architectures import KINDS, make
from torch import nn

from edgequant import models
from edgequant.errors import UserError
from edgequant.models.same_function.comparison import probe_tokens
from edgequant.quantization.layers import convert as conversion
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear
from edgequant.quantization.layers.fixed_weights import IdentityQuantizer
from edgequant.quantization.layers.integer import IntegerLayer, IntegerLinear
from edgequant.quantization.scheme import parse_scheme


def prepared(model: Any, scheme: str) -> Any:
    prepare(model, parse_scheme(scheme))
    if has_static_ranges(model):
        calibrate(model, [probe_tokens(model)])
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_arithmetic_is_no_fault_in_any_type_and_at_depth(kind, dtype, monkeypatch):
    """In 12 blocks one activation that falls to the other side of a border has moved many others by the end."""
    monkeypatch.setitem(random_architectures.SIZES, "num_hidden_layers", 12)
    model = models.cast(make(kind, tied=True), dtype)
    convert(prepared(model, "w8a8-static+emb8"))
    assert all(isinstance(one, IntegerLayer) for one in (model.get_input_embeddings(), model.get_output_embeddings()))


@pytest.mark.parametrize("scheme", ["w8", "w8a8", "w8a8-static", "w4a8-g32+emb4", "q4_0"])
@pytest.mark.parametrize("lost", ["bias", "scale", "head"])
def test_a_conversion_that_loses_something_is_refused(lost, scheme, monkeypatch):
    """Biases as large as trained ones of Qwen2, scales off by a third, a head that was never loaded."""
    model = make("qwen2", tied=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.mul_(10)
    right = FakeQuantizedLinear.to_integer

    def wrong(self: FakeQuantizedLinear, packed: Any, *, tied: bool = False) -> IntegerLinear:
        made = right(self, packed, tied=tied)
        if lost == "bias":
            made.bias = None
        elif lost == "scale":
            packed.scale = packed.scale * 1.3
        return made

    prepared(model, scheme)
    monkeypatch.setattr(FakeQuantizedLinear, "to_integer", wrong)
    if lost == "head":
        monkeypatch.undo()
        real = conversion.replace_module

        def with_another_head(model: Any, name: str, made: nn.Module) -> None:
            real(model, name, made)
            model.lm_head = nn.Linear(64, 264, bias=False)

        monkeypatch.setattr(conversion, "replace_module", with_another_head)
    with pytest.raises(UserError, match=r"^converting to integers changed what the model computes: .* differ by \d"):
        convert(model)


def test_a_model_that_is_no_language_model_is_converted_all_the_same():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    prepare(model, parse_scheme("w8"))
    convert(model)
    assert isinstance(model[0], IntegerLinear)


def test_integers_that_the_conversion_itself_chooses_are_not_compared(tiny):
    """Where a layer simulates nothing yet, rounding it to nearest does change what is computed."""
    prepare(tiny.model, parse_scheme("w2-g32"))
    for layer in [one for one in tiny.model.modules() if isinstance(one, FakeQuantizedLinear)]:
        layer.quantizer = IdentityQuantizer(layer.spec)
    convert(tiny.model)
