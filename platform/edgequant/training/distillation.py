"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): follow a teacher's distribution too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

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


def top_k_divergence(student: Tensor, log_probabilities: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """Mean over positions of T^2 KL(teacher || student) over k tokens and one class for all others.

    sum_i p_i (log p_i - log q_i) + r (log r - log s): i over the teacher's k most probable tokens, r = 1 - sum_i p_i,
    s = 1 - sum_i q_i. Merging classes never raises a divergence (the log-sum inequality): this one is a lower bound of
    `divergence`, and equal to it where k is the vocabulary.

    Args:
        student: logits [positions, vocabulary], any floating type; gradients flow into these.
        log_probabilities: [positions, k + 1] of the teacher at this temperature; the last is log r.
        indices: [positions, k] token ids.
        temperature: T > 0, divides the student's logits.
    """
    total = student.new_zeros((), dtype=torch.float32)
    parts = (tensor.split(CHUNK) for tensor in (student, log_probabilities, indices))
    for ours, theirs, ids in zip(*parts, strict=True):
        # computed again in the backward pass, so that no [positions, vocabulary] of float32 waits for it
        total = total + checkpoint(
            _top_k_sum, ours, theirs, ids.long(), temperature, use_reentrant=False, preserve_rng_state=False
        )
    return total * temperature**2 / student.shape[0]


def _top_k_sum(student: Tensor, log_probabilities: Tensor, indices: Tensor, temperature: float) -> Tensor:
    everything = functional.log_softmax(student.float() / temperature, -1)
    ours, theirs = everything.gather(-1, indices), log_probabilities.float()
    if indices.shape[-1] == student.shape[-1]:
        theirs = theirs[:, :-1]  # no token is left for the class of the others
    else:
        rest = everything.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
        ours = torch.cat([ours, rest], -1)
    # log_softmax: what was stored in 16 bits sums to one only roughly
    return functional.kl_div(ours, functional.log_softmax(theirs, -1), reduction="sum", log_target=True)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, nats per token: logits [batch, length, vocabulary] at t predict the tokens at t + 1."""
    predicted = logits[:, :-1].reshape(-1, logits.shape[-1])
    wanted = tokens[:, 1:].reshape(-1)
    total = logits.new_zeros((), dtype=torch.float32)
    for part, targets in zip(predicted.split(CHUNK), wanted.split(CHUNK), strict=True):
        total = total + functional.cross_entropy(part.float(), targets, reduction="sum")
    return total / wanted.numel()
