"""QAT that starts where a PTQ method ended: its integers, scales and zero points are the first step's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgequant.quantization.arithmetic.affine import QuantizedWeight, grouped
from edgequant.quantization.arithmetic.grids import Grid, stored
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.fake_quantized import fake_quantized_layers
from edgequant.quantization.layers.fixed_weights import fixed_codes_of
from edgequant.quantization.layers.weight_quantizer import WeightQuantizer
from edgequant.quantization.ptq.quantize import choose_integers
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import Scheme, WeightSpec

ALMOST_HALF = 0.49  # of a step: surely rounded to the integer in the middle


@torch.no_grad()
def prepare_from_ptq(
    model: nn.Module,
    scheme: Scheme,
    method: str,
    calibration: list[Tensor],
    *,
    settings: PtqSettings = PtqSettings(),
    calibration_settings: CalibrationSettings = CalibrationSettings(),
    work_folder: Path | None = None,
) -> None:
    """`convert.prepare`, in place, from what a PTQ method chooses instead of from the floating-point weights.

    The method's scales, zero points and minima become parameters. A weight that rounds to its integer already stays as
    it is, and any other moves to the nearest value that does: weights in the middle of their steps would need a long
    way to the next integer.

    Args:
        model: floating-point, in evaluation mode.
        scheme: what to quantise and how; backend `edgequant`.
        method: see `ptq.methods.parse_method`; awq and smoothquant leave their scales folded into the norms.
        calibration: token batches [batch, length].
        settings, calibration_settings: as `ptq.quantize`.
        work_folder: as `ptq.quantize`.

    Raises:
        UserError: as `ptq.quantize`.
    """
    choose_integers(model, scheme, calibration, method, settings, calibration_settings, work_folder)
    learn_from_integers(model)


@torch.no_grad()
def learn_from_integers(model: nn.Module) -> None:
    """Let a model whose integers `ptq.quantize.choose_integers` chose train on from them, in place."""
    quantizers: dict[int, WeightQuantizer] = {}
    # Embeddings first: a tied head sees the shared weight through the embedding's quantiser.
    for layer in sorted(fake_quantized_layers(model).values(), key=lambda layer: layer.kind != "embedding"):
        if id(layer.weight) not in quantizers:
            chosen = fixed_codes_of(layer)
            assert chosen is not None  # a method leaves no layer without integers
            layer.weight.copy_(nearest_that_round_to(layer.weight, chosen, layer.spec))
            made = WeightQuantizer(layer.spec, layer.weight, learned=True, start=chosen)
            quantizers[id(layer.weight)] = made
        layer.quantizer = quantizers[id(layer.weight)]


def nearest_that_round_to(weight: Tensor, chosen: QuantizedWeight, spec: WeightSpec) -> Tensor:
    """The values closest to a weight [out, in] whose integers are the chosen ones."""
    scale = stored(chosen.scale, spec)
    offset = Grid(spec, scale, chosen.zero_point, chosen.minimum).offset
    position = (grouped(weight.float(), spec) - offset) / scale
    inside = position.clamp(chosen.codes - ALMOST_HALF, chosen.codes + ALMOST_HALF)
    return (inside * scale + offset).reshape(weight.shape)
