"""LoftQ: adapters that begin by making good what rounding did to the weights under them.

B A is the best approximation of W - Q(W) at the adapters' rank (Li et al. 2023, arXiv 2310.08659, algorithm 1 with one
step, which leaves the integers as they are: they are a checkpoint's, or another program's).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from edgequant import models
from edgequant.errors import UserError
from edgequant.quantization.adapters.integer_model import IntegerModel
from edgequant.quantization.adapters.step_updates import SteppedCodesQuantizer
from edgequant.quantization.arithmetic.affine import grouped
from edgequant.quantization.layers.fake_quantized import fake_quantized_linears

UNRELATED = 0.8  # of a weight's length: what even two bits do not lose


@torch.no_grad()
def begin_adapters(adapted: Any, floating: str) -> None:
    """Begin LoRA layers over integers with what these lack of a floating-point model's weights, in place.

    Args:
        adapted: of peft, over bitsandbytes' or simulated integers.
        floating: source of the model that was quantised.

    Raises:
        UserError: the model has other layers, or weights that these integers are not made of.
    """
    from peft.tuners.lora import LoraLayer

    weights = _weights_of(floating)
    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            lacking = _lacking(name, weights, _dequantized(base), floating)
            down, up = (cast(Tensor, held["default"].weight) for held in (layer.lora_A, layer.lora_B))
            b, a = best_product(lacking, down.shape[0])
            down.copy_(a)
            up.copy_(b / layer.scaling["default"])


@torch.no_grad()
def begin_updates(adapted: IntegerModel, floating: str) -> None:
    """Begin updates in steps with where in its step each weight of a floating-point model lies, in place.

    The integers are at first those that they were: what lies within half a step is not rounded to another one.

    Args:
        adapted: of `adapt_integers`.
        floating: as `begin_adapters`.

    Raises:
        UserError: as `begin_adapters`.
    """
    weights = _weights_of(floating)
    for name, layer in fake_quantized_linears(adapted.model).items():
        quantizer = layer.quantizer
        if isinstance(quantizer, SteppedCodesQuantizer) and quantizer.a is not None and quantizer.b is not None:
            lacking = _lacking(name, weights, quantizer(layer.weight), floating)
            steps = (grouped(lacking, layer.spec) / quantizer.current_grid().scale).reshape(lacking.shape)
            b, a = best_product(steps.clamp(-0.5, 0.5), quantizer.a.shape[0])
            size = a.square().mean().sqrt().clamp(min=1e-8)  # A keeps the variance that it is drawn with
            quantizer.a.copy_(a / size)
            quantizer.b.copy_(b * size / quantizer.factor)


def best_product(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [out, rank] and A [rank, in] whose product is closest to a matrix [out, in] (Eckart and Young 1936)."""
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = s[:rank].sqrt()
    b, a = u[:, :rank] * root, root[:, None] * v[:rank]
    missing = rank - len(root)
    if missing <= 0:
        return b, a
    return torch.nn.functional.pad(b, (0, missing)), torch.nn.functional.pad(a, (0, 0, 0, missing))


def _weights_of(floating: str) -> dict[str, Tensor]:
    loaded = models.load(floating, dtype="float32", device="cpu")
    if getattr(loaded.model, "is_quantized", False):
        raise UserError(f"lora.loftq_from must be a floating-point model, got {floating!r}, which is quantised")
    return {name: tensor for name, tensor in loaded.model.state_dict().items() if tensor.ndim == 2}


def _lacking(name: str, weights: dict[str, Tensor], quantized: Tensor, floating: str) -> Tensor:
    given = weights.get(f"{name}.weight")
    if given is None or given.shape != quantized.shape:
        found = "no such layer" if given is None else f"one of shape {list(given.shape)}"
        raise UserError(
            f"lora.loftq_from must be the model that was quantised, got {floating!r}, which has {found} for {name} "
            f"{list(quantized.shape)}; name that model"
        )
    lacking = given.to(quantized.device) - quantized.float()
    if float(lacking.norm()) > UNRELATED * float(given.norm()):
        raise UserError(
            f"lora.loftq_from must be the model that was quantised, got {floating!r}, whose {name} is another matrix; "
            "name that model, or leave it out where the method (awq, smoothquant) scaled the weights"
        )
    return lacking


def _dequantized(layer: Any) -> Tensor:
    if (quantizer := getattr(layer, "quantizer", None)) is not None:
        return cast(Tensor, quantizer(layer.weight))
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer)
