"""What an error in a row of an embedding does that is the output head too: in the logits, and as an input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgequant.quantization.ptq.automatic import sequences_within
from edgequant.quantization.ptq.block_stream import BlockStream
from edgequant.quantization.ptq.second_moments import SecondMoment, SecondMomentSum

TOKENS = 1024  # of the calibration text that gradients are taken of, at least one sequence


def moment_of_both_uses(stream: BlockStream, embedding: nn.Module, head: nn.Module) -> SecondMoment:
    """H [features, features] with E[rise of the loss] = d^T H d / 2 for an error d of a row, nats per token.

    As the head, a row's error moves the logit of its token by d^T h, which costs p (1 - p) (d^T h)^2 / 2; as the input
    of a token it costs (d^T g)^2 / 2 with g the gradient of the sequence's loss by it (empirical Fisher information).
    Rows count as often as their tokens come up in both uses, so one H, a mean over tokens, serves all of them:
    E[(1 - sum p^2) h h^T] + E[g g^T].

    Args:
        stream: the model, whose function is still the floating-point one, and its calibration text.
        embedding, head: modules that share their weight.
    """
    as_head, as_input = SecondMomentSum(), SecondMomentSum()
    for ids in _together(sequences_within([row for batch in stream.batches for row in batch.split(1)], TOKENS)):
        hidden, doubt, gradient = _uses(stream, embedding, head, ids.to(stream.device))
        as_head.add(hidden * doubt.sqrt().unsqueeze(-1))
        as_input.add(gradient)
    return as_head.moment() + as_input.moment()


def _together(sequences: list[Tensor]) -> list[Tensor]:
    """Sequences [1, length] of one length as a batch, others one by one."""
    return [torch.cat(sequences)] if len({len(row[0]) for row in sequences}) == 1 else sequences


@torch.enable_grad()
def _uses(stream: BlockStream, embedding: nn.Module, head: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token of ids [sequences, length]: what the head is given [tokens, features], 1 - sum p^2 of what it
    predicts [tokens], and the gradient of its sequence's loss by its row of the embedding [tokens, features]."""
    model: Any = stream.model
    with _seen(embedding, head) as seen, stream.autocast():
        logits = model(input_ids=ids, use_cache=False).logits.float()
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, seen["rows"])
    scale = getattr(embedding, "output_scale", None)  # of Gemma: rows are multiplied before they go in
    gradient = gradient.flatten(0, 1).float() * (1.0 if scale is None else scale.float().to(gradient.device))
    doubt = 1 - logits.detach().flatten(0, 1).softmax(-1).square().sum(-1)
    return seen["hidden"].detach().flatten(0, 1).float(), doubt, gradient


@contextmanager
def _seen(embedding: nn.Module, head: nn.Module) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def rows(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        seen["rows"] = output.detach().requires_grad_()
        return seen["rows"]

    def hidden(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["hidden"] = inputs[0]

    handles = [embedding.register_forward_hook(rows), head.register_forward_pre_hook(hidden)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
