"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): follow a teacher's distribution too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1024  # positions whose [chunk, vocabulary] float32 logits are alive at a time


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over positions of T^2 KL(teacher || student).

    Args:
        student: logits [positions, vocabulary], any floating type; gradients flow into these.
        teacher: logits of the same shape.
        temperature: T > 0, divides both.
    """
    total = student.new_zeros((), dtype=torch.float32)
    for ours, theirs in zip(student.split(CHUNK), teacher.split(CHUNK), strict=True):
        log_ours = functional.log_softmax(ours.float() / temperature, -1)
        log_theirs = functional.log_softmax(theirs.float() / temperature, -1)
        total = total + functional.kl_div(log_ours, log_theirs, reduction="sum", log_target=True)
    return total * temperature**2 / student.shape[0]


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, nats per token: logits [batch, length, vocabulary] at t predict the tokens at t + 1."""
    predicted = logits[:, :-1].reshape(-1, logits.shape[-1])
    wanted = tokens[:, 1:].reshape(-1)
    total = logits.new_zeros((), dtype=torch.float32)
    for part, targets in zip(predicted.split(CHUNK), wanted.split(CHUNK), strict=True):
        total = total + functional.cross_entropy(part.float(), targets, reduction="sum")
    return total / wanted.numel()
