"""How much a layer's rounding costs: squared gradients times squared rounding errors, all layers from one pass.

A second-order expansion of the loss around the trained weights, its Hessian replaced by the diagonal of the empirical
Fisher information, as in optimal brain damage (LeCun et al. 1989, equation 4) and, for quantisation, SqueezeLLM (Kim et
al. 2023, arXiv 2306.07629, equation 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from edgequant.quantization.affine import dequantize_weight, quantize_weight
from edgequant.quantization.scheme import WeightSpec

LOSS_CHUNK = 1024  # positions whose float32 logits are alive at a time


def fisher_diagonals(
    model: nn.Module, layers: Sequence[str], sequences: Sequence[Tensor], *, bfloat16: bool = False
) -> dict[str, Tensor]:
    """The diagonal of each layer's empirical Fisher information, per predicted token.

    For sequences of T predicted tokens, F = T mean_s g_s^2, where g_s is the gradient of the mean next-token loss of
    sequence s. Gradients are squared, added up and dropped as soon as backpropagation has made them: beside the model
    itself, one float32 number per weight is held.

    Args:
        model: floating-point causal language model in evaluation mode; unchanged afterwards.
        layers: names of nn.Linear and nn.Embedding; of tied ones, name one.
        sequences: token rows [length] or [1, length]; each is a sample.
        bfloat16: compute passes under autocast; squares are summed in float32 all the same.

    Returns:
        For each layer a tensor of its weight's shape, float32, nats.
    """
    weights = {name: weight_of(model, name) for name in layers}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    progress = tqdm(sequences, desc="sensitivity", unit="sequence", disable=None)
    with _squares_added(model, weights, sums), torch.enable_grad():
        for sequence in progress:
            tokens = sequence.reshape(1, -1).to(next(iter(sums.values())).device)
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bfloat16):
                logits = model(input_ids=tokens, use_cache=False).logits
            (_next_token_loss(logits, tokens) * (tokens.shape[1] - 1) ** 0.5).backward()
    return {name: total.div_(len(sequences)) for name, total in sums.items()}


def weight_of(model: nn.Module, layer: str) -> nn.Parameter:
    """The weight of a layer by name."""
    return cast(nn.Parameter, model.get_submodule(layer).weight)


def _next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    parts = zip(logits[0, :-1].split(LOSS_CHUNK), tokens[0, 1:].split(LOSS_CHUNK), strict=True)
    total = [functional.cross_entropy(part.float(), wanted, reduction="sum") for part, wanted in parts]
    return torch.stack(total).sum() / (tokens.shape[1] - 1)


@contextmanager
def _squares_added(model: nn.Module, weights: dict[str, nn.Parameter], sums: dict[str, Tensor]) -> Iterator[None]:
    """Let every gradient of the weights go into the sums, squared, and nowhere else."""
    wanted_before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)

    def adder(total: Tensor) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            total.addcmul_(parameter.grad.float(), parameter.grad.float())
            parameter.grad = None

        return add

    handles = []
    for name, weight in weights.items():
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(adder(sums[name])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted in wanted_before.items():
            parameter.requires_grad_(wanted)


@torch.no_grad()
def loss_increase(weight: Tensor, fisher: Tensor, spec: WeightSpec) -> float:
    """Predicted increase of the next-token loss, nats, by rounding one weight to nearest: 1/2 sum F (w_q - w)^2.

    Args:
        weight: [out, in].
        fisher: of the same shape, from `fisher_diagonals`.
        spec: how it is rounded.
    """
    rounded = dequantize_weight(quantize_weight(weight.detach(), spec), weight.shape)
    return 0.5 * float((rounded - weight.float()).square_().mul_(fisher).sum(dtype=torch.float64))
