"""`smoothquant`: outliers move from activations into weights, so that both quantise well.

Xiao et al. 2022, arXiv 2211.10438.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgequant.quantization.arithmetic.affine import (
    affine_parameters,
    fake_quantize,
    fake_quantize_tokens,
    simulated_weight,
)
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear
from edgequant.quantization.layers.input_quantizers import INT8
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock
from edgequant.quantization.ptq.scaling.equivalent_scaling import ScalingPair, find_scaling_pairs

SAMPLED_TOKENS = 512  # of each input, on which exponents are compared
ALPHAS = [step / 10 for step in range(11)]


@dataclass
class InputStatistics:
    """What calibration showed of one input: its columns' extremes [in] and a sample of its tokens [tokens, in]."""

    low: Tensor
    high: Tensor
    sample: list[Tensor]

    def add(self, inputs: Tensor, kept: int) -> None:
        """Take in tokens [tokens, in], and keep some of them, drawn evenly."""
        self.low = torch.minimum(self.low, inputs.amin(0))
        self.high = torch.maximum(self.high, inputs.amax(0))
        generator = torch.Generator().manual_seed(len(self.sample))  # other positions in every batch
        chosen = torch.randperm(len(inputs), generator=generator)[:kept]
        self.sample.append(inputs[chosen.to(inputs.device)])


class Smoothing:
    """s = max|x|^alpha / max|w|^(1 - alpha) per input feature (equation 4), for every input that can be scaled.

    One alpha for all, as in the paper, or, with None, for each input the one whose quantised output errs least. s is
    centred around 1, which changes nothing that is computed and keeps weights at a size that suits further training.
    """

    def __init__(self, alpha: float | None = None) -> None:
        self.alphas = ALPHAS if alpha is None else [alpha]

    @torch.no_grad()
    def apply(self, block: CalibratedBlock) -> None:
        pairs = find_scaling_pairs(block)
        seen: dict[str, InputStatistics] = {}
        kept = -(-SAMPLED_TOKENS // len(block.inputs))

        def add(name: str, inputs: Tensor) -> None:
            first = inputs[0]
            seen.setdefault(name, InputStatistics(first, first, [])).add(inputs, kept)

        block.capture_inputs([group.names[0] for group, _ in pairs], add)
        for group, pair in pairs:
            pair.apply(block, self._scale(block, pair, seen[group.names[0]]))

    def _scale(self, block: CalibratedBlock, pair: ScalingPair, seen: InputStatistics) -> Tensor:
        layers = [block.layers[name] for name in pair.names]
        weights = torch.stack([layer.weight.abs().amax(0).float() for layer in layers]).amax(0)
        weights = pair.gather(weights).clamp(min=1e-5)
        inputs = pair.gather(torch.maximum(seen.low.abs(), seen.high.abs())).clamp(min=1e-5)
        scales = [_centered(inputs**alpha / weights ** (1 - alpha)) for alpha in self.alphas]
        if len(scales) == 1:
            return scales[0]
        sample = torch.cat(seen.sample)
        expected = [sample @ layer.weight.float().t() for layer in layers]
        errors = [_output_error(layers, pair.spread(scale), sample, expected, seen) for scale in scales]
        return scales[min(range(len(errors)), key=errors.__getitem__)]


def _centered(scale: Tensor) -> Tensor:
    """Scales whose geometric mean is 1."""
    return scale / scale.log().mean().exp()


def _output_error(
    layers: list[FakeQuantizedLinear], scale: Tensor, sample: Tensor, expected: list[Tensor], seen: InputStatistics
) -> float:
    """Squared error of the layers' outputs with x / s and W s quantised to nearest, on the sample [tokens, in]."""
    smooth = sample / scale
    if layers[0].needs_range:
        extremes = affine_parameters((seen.low / scale).min(), (seen.high / scale).max(), INT8)
        smooth = fake_quantize(smooth, *extremes, INT8)
    elif layers[0].input_quantizer is not None:
        smooth = fake_quantize_tokens(smooth, INT8)
    error = torch.zeros((), device=sample.device)
    for layer, right in zip(layers, expected, strict=True):
        weight = simulated_weight(layer.weight.float() * scale, layer.spec)
        error += (smooth @ weight.t() - right).square().sum()
    return float(error)
