"""Losses over vocabulary-sized logits, piece by piece: the next token's, and distillation (Hinton et al. 2015, arXiv
1503.02531), which follows a teacher's distribution too.

Nothing of [positions, vocabulary] is kept in float32: a term's gradient has a closed form, so it is computed together
with the term and kept in the logits' own type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 1024  # positions whose [chunk, vocabulary] float32 logits are alive at a time, at most
CACHED = 1 << 20  # logits that a CPU's cache holds: more at a time take four times as long there

# From float32 logits [n, vocabulary] and which positions they are: the term's sum over these, its gradient for these.
Term = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


class _SumOverPositions(torch.autograd.Function):
    """Sum of a term over all positions; forward computes the gradient as well, backward only scales it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, term: Term) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        chunk = min(CHUNK, max(1, CACHED // logits.shape[-1])) if logits.device.type == "cpu" else CHUNK
        for start in range(0, logits.shape[0], chunk):
            positions = slice(start, min(start + chunk, logits.shape[0]))
            piece, slope = term(logits[positions].float(), positions)
            total += piece
            if gradient is not None:
                gradient[positions] = slope
        ctx.gradient = gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # In place: a second [positions, vocabulary] would double the peak. Gone after this, so no second backward.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the loss's gradient was used already; run the forward pass again")
        return gradient.mul_(gradients[0]), None


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over positions of T^2 KL(teacher || student).

    Args:
        student: logits [positions, vocabulary], any floating type; gradients flow into these.
        teacher: logits [positions, its vocabulary]; where that is shorter, the student's tokens beyond it, which are
            padding, are left out.
        temperature: T > 0, divides both.
    """
    if teacher.shape[-1] < student.shape[-1]:
        student = student[:, : teacher.shape[-1]]

    def term(ours: Tensor, positions: slice) -> tuple[Tensor, Tensor]:
        log_ours = functional.log_softmax(ours / temperature, -1)
        log_theirs = functional.log_softmax(teacher[positions].float() / temperature, -1)
        theirs = log_theirs.exp()
        value = functional.kl_div(log_ours, log_theirs, reduction="sum", log_target=True)
        return value, log_ours.exp_().sub_(theirs).div_(temperature)  # d KL / d z = (softmax(z / T) - p) / T

    return _SumOverPositions.apply(student, term) * temperature**2 / student.shape[0]


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

    def term(ours: Tensor, positions: slice) -> tuple[Tensor, Tensor]:
        everything = functional.log_softmax(ours / temperature, -1)
        theirs, ids = log_probabilities[positions].float(), indices[positions].long()
        log_ours = everything.gather(-1, ids)
        if ids.shape[-1] == ours.shape[-1]:  # no token is left for the class of the others
            # log_softmax: what was stored in 16 bits sums to one only roughly
            log_theirs = functional.log_softmax(theirs[:, :-1], -1)
            value = functional.kl_div(log_ours, log_theirs, reduction="sum", log_target=True)
            slope = everything.exp_()
        else:
            log_theirs = functional.log_softmax(theirs, -1)
            others = everything.scatter(-1, ids, -torch.inf)
            rest = others.logsumexp(-1, keepdim=True)
            both = torch.cat([log_ours, rest], -1)
            value = functional.kl_div(both, log_theirs, reduction="sum", log_target=True)
            slope = everything.exp_().sub_((others - rest + log_theirs[:, -1:]).exp_())  # r q / s of every other token
        kept = log_theirs[:, : ids.shape[-1]].exp()
        return value, slope.scatter_add_(-1, ids, -kept).div_(temperature)

    return _SumOverPositions.apply(student, term) * temperature**2 / student.shape[0]


def as_read(tokens: Tensor) -> Tensor:
    """What a model reads of rows in which ~t, below 0, stands for a token t that is read and not learnt."""
    return torch.where(tokens < 0, ~tokens, tokens)


def reading(tokens: Tensor, document_end: int | None) -> dict[str, Tensor]:
    """What a model is given of rows [batch, length] (`as_read`).

    Args:
        document_end: token with which a document ends, where each token is to see its own document alone (Krell et al.
            2021, arXiv 2107.02027): transformers masks between documents where positions begin anew. One that is read
            and not learnt, as within a conversation, ends nothing. None: tokens see all that comes before them.
    """
    found = {"input_ids": as_read(tokens)}
    return found if document_end is None else found | {"position_ids": document_positions(tokens, document_end)}


@torch.no_grad()
def taught(teacher: nn.Module, tokens: Tensor, document_end: int | None, *, bfloat16: bool) -> Tensor:
    """What a model predicts on rows [batch, length]: logits [batch x length, its vocabulary].

    Args:
        bfloat16: compute so, as the model that learns from it does, which Trainer lends its precision alone; a model in
            float16 keeps to that, since autocast takes no two kinds of half precision.
        document_end: as `reading`.
    """
    is_half = next(teacher.parameters()).dtype is torch.float16
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bfloat16 and not is_half):
        return teacher(**reading(tokens, document_end), use_cache=False).logits.flatten(0, 1)  # type: ignore[no-any-return]


def document_positions(tokens: Tensor, end: int) -> Tensor:
    """Position of each token in its document, [batch, length] int64: 0 at a row's begin and behind every end."""
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.zeros_like(tokens, dtype=torch.bool)
    begins[:, 1:] = tokens[:, :-1] == end
    return places - (places * begins).cummax(1).values


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, nats per token: logits [batch, length, vocabulary] at t predict the tokens at t + 1.

    Tokens below 0 are not learnt; 0 where none is.
    """
    wanted = functional.pad(tokens[:, 1:], (0, 1), value=-1).flatten()  # nothing follows a sequence's last token

    def term(ours: Tensor, positions: slice) -> tuple[Tensor, Tensor]:
        target = wanted[positions, None]
        counted = target >= 0
        log_ours = functional.log_softmax(ours, -1)
        index = target.clamp(min=0)
        value = -(log_ours.gather(-1, index) * counted).sum()
        slope = log_ours.exp_()  # d/dz = softmax(z) - [z is the target's]
        return value, slope.scatter_add_(-1, index, -torch.ones_like(slope[:, :1])).mul_(counted)

    return _SumOverPositions.apply(logits.flatten(0, 1), term) / (wanted >= 0).sum().clamp(min=1)
