"""What a scheme's grid costs a model's weights: relative squared rounding errors beside bits per weight.

    python benchmarks/rounding/rounding_errors.py   # SmolLM2, every 15th linear, half a minute
    python benchmarks/rounding/rounding_errors.py --model tiny --every 1 --schemes w4-g32 w4-g32-sym

Weights alone decide, each as much as any other: no text, no perplexity.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from edgequant import models
from edgequant.quantization.arithmetic.affine import QuantizedWeight, dequantize_weight, quantize_weight
from edgequant.quantization.arithmetic.range_search import quantize_clipped
from edgequant.quantization.scheme import WeightSpec, parse_scheme

SCHEMES = [f"{name}{suffix}" for name in ("w4-g32", "w4-g64", "w3-g64", "w2-g64", "w2") for suffix in ("", "-sym")]
SCHEMES += ["w1.58-g64", "w1.58"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--every", type=int, default=15, help="of the model's linears, each so many-th")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    options = parser.parse_args()
    model = models.load(options.model, dtype="float32", device="cpu").model
    linears = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    weights = [linear.weight.detach() for linear in linears[:: options.every]]
    print("| scheme | bits per weight | to nearest | mse_clip |\n|---|---|---|---|")
    for name in options.schemes:
        spec = parse_scheme(name).weight
        if spec is None:
            parser.error(f"--schemes {name} is not edgequant's own; use one such as w4-g32-sym")
        nearest, clipped = ([how(weight, spec) for weight in weights] for how in (quantize_weight, quantize_clipped))
        print(f"| `{name}` | {bits(weights, spec):.2f} | {error(weights, nearest)} | {error(weights, clipped)} |")


def bits(weights: list[torch.Tensor], spec: WeightSpec) -> float:
    """Stored bits per weight over all weights, scales and zero points included."""
    stored = sum(weight.numel() * spec.bits_per_weight(weight.shape[1]) for weight in weights)
    return stored / sum(weight.numel() for weight in weights)


def error(weights: list[torch.Tensor], rounded: list[QuantizedWeight]) -> str:
    """Sum of squared errors over the sum of squares, per cent."""
    pairs = zip(weights, rounded, strict=True)
    lost = sum(float((dequantize_weight(found, weight.shape) - weight).square().sum()) for weight, found in pairs)
    return f"{100 * lost / sum(float(weight.square().sum()) for weight in weights):.2f} %"


if __name__ == "__main__":
    main()
