"""Integers that PTQ has fixed: they go with their model, and keep their types."""

from __future__ import annotations

import pytest
import torch

from edgequant.quantization.arithmetic.affine import quantize_weight
from edgequant.quantization.layers.fixed_weights import FixedCodesQuantizer
from edgequant.quantization.scheme import parse_scheme


@pytest.mark.parametrize("scheme", ["w4-g32", "w4-g32-sym", "q4_1", "w8"])
def test_fixed_integers_go_to_their_models_device_and_keep_their_types(scheme):
    spec = parse_scheme(scheme).weight
    fixed = quantize_weight(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), spec)
    quantizer = torch.nn.Sequential(FixedCodesQuantizer(spec, fixed)).to("meta", torch.bfloat16)[0]
    for before, after in zip(fixed, quantizer.fixed, strict=True):
        assert (before is None) == (after is None)
        assert after is None or (after.device.type == "meta" and after.dtype == before.dtype)
