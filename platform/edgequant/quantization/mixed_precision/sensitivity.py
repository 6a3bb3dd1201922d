"""How much a layer's rounding costs: squared gradients times squared rounding errors, all layers from one pass.

A second-order expansion of the loss around the trained weights with a diagonal Hessian, as in optimal brain damage
(LeCun et al. 1989, equation 4); the Fisher information stands for the Hessian, as in SqueezeLLM (Kim et al. 2023, arXiv
2306.07629, equation 4). Unlike there, tokens are drawn from the model's own predictions instead of taken from the text:
on text that the model does not fit, the mean gradient is not 0, and its square says how much the weights would like to
move, not how sharp the loss is (Kunstner et al. 2019, arXiv 1905.12558).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgequant.progress import progress
from edgequant.quantization.arithmetic.affine import dequantize_weight, quantize_weight
from edgequant.quantization.scheme import WeightSpec

LOSS_CHUNK = 1024  # positions whose float32 logits are alive at a time
SEED = 0  # of the tokens drawn


def fisher_diagonals(
    model: nn.Module, layers: Sequence[str], sequences: Sequence[Tensor], *, bfloat16: bool = False
) -> dict[str, Tensor]:
    """The diagonal of each layer's Fisher information per predicted token, by one draw of every token.

    For sequences of T predicted tokens, F = T mean_s g_s^2, where g_s is the gradient of the mean loss of sequence s on
    tokens drawn from the model's predictions: gradients of different tokens then have mean 0 and are uncorrelated, so
    that the square of their sum is, on average, the sum of their squares. Gradients are squared, added up and dropped
    as soon as backpropagation has made them: beside the model itself, one float32 number per weight is held.

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
    device = next(iter(sums.values())).device
    generator = torch.Generator(device).manual_seed(SEED)
    with _squares_added(model, weights, sums), torch.enable_grad():
        for sequence in progress(sequences, len(sequences), "sensitivity", "sequence"):
            tokens = sequence.reshape(1, -1).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
            (_loss_on_drawn_tokens(logits, generator) * len(logits) ** 0.5).backward()
    return {name: total.div_(len(sequences)) for name, total in sums.items()}


def weight_of(model: nn.Module, layer: str) -> nn.Parameter:
    """The weight of a layer by name."""
    return cast(nn.Parameter, model.get_submodule(layer).weight)


def _loss_on_drawn_tokens(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Mean cross-entropy, nats, of logits [positions, vocabulary] on one token drawn from each prediction."""
    total = []
    for part in logits.split(LOSS_CHUNK):
        predicted = part.float()
        drawn = torch.multinomial(predicted.detach().softmax(-1), 1, generator=generator)[:, 0]
        total.append(functional.cross_entropy(predicted, drawn, reduction="sum"))
    return torch.stack(total).sum() / len(logits)


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
