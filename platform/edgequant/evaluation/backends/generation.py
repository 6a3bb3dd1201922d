"""Batched generation that drops finished rows from the batch; greedy answers that stop at the first line end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from edgequant.errors import UserError
from edgequant.evaluation.backends.prefix_sharing import Group
from edgequant.evaluation.backends.token_losses import LMHead


def stop_tokens(tokenizer: Any, generation_config: Any, vocabulary: int) -> torch.Tensor:
    """Boolean [vocabulary]: tokens that end an answer, because their text holds a line end or they end the text."""
    pieces = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), vocabulary)))
    # Byte-level vocabularies write a line end as Ċ, SentencePiece ones as itself or as a byte.
    marked = [i for i, piece in enumerate(pieces) if piece and any(mark in piece for mark in ("Ċ", "\n", "<0x0A>"))]
    ends = [token for token in marked if "\n" in tokenizer.decode([token])]
    configured = getattr(generation_config, "eos_token_id", None)
    ends += configured if isinstance(configured, list) else [] if configured is None else [configured]
    ends += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stop = torch.zeros(vocabulary, dtype=torch.bool)
    stop[[token for token in ends if token < vocabulary]] = True
    return stop


def greedy(
    model: Any, head: LMHead, prompts: Sequence[Sequence[int]], stop: torch.Tensor, max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuations of a batch of prompts, each up to and including its stop token.

    Prompts are padded on the left, so that positions and sliding windows are those of an unpadded run.

    Args:
        stop: boolean [vocabulary] on the model's device.

    Raises:
        UserError: the model's logits are NaN.
    """
    decoding = BatchDecoding(model, head, stop.device)
    return _greedily(decoding, decoding.prefill(prompts), stop, max_new_tokens)


def greedy_in_groups(
    model: Any,
    head: LMHead,
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Group],
    stop: torch.Tensor,
    max_new_tokens: int,
) -> list[list[int]]:
    """As `greedy` for the groups' members, in the groups' order, reading each group's common beginning once."""
    decoding = BatchDecoding(model, head, stop.device)
    return _greedily(decoding, decoding.prefill_groups(prompts, groups), stop, max_new_tokens)


def can_share_prefixes(model: Any) -> bool:
    """Padding between prefix and suffix would shift a sliding window, so only full attention everywhere will do."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return kinds == {"full_attention"} and not sliding


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both [rows, longest]."""
    longest = max(map(len, rows))
    padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(longest)[None] >= longest - lengths[:, None]
    return padded.to(device), mask.long().to(device)


def _greedily(
    decoding: BatchDecoding, logits: torch.Tensor, stop: torch.Tensor, max_new_tokens: int
) -> list[list[int]]:
    tokens = logits.argmax(dim=-1)
    rows = torch.arange(len(tokens), device=tokens.device)
    generated = torch.full((len(tokens), max_new_tokens), -1, device=tokens.device)
    finished = torch.zeros_like(tokens, dtype=torch.bool)
    for step in range(max_new_tokens):
        generated[rows[~finished], step] = tokens[~finished]
        finished |= stop[tokens]
        left = len(tokens) - int(finished.sum())
        if left == 0 or step == max_new_tokens - 1:
            break
        if left <= 0.7 * len(tokens):
            keep = (~finished).nonzero(as_tuple=True)[0]
            rows, tokens, finished = rows[keep], tokens[keep], finished[keep]
            decoding.keep(keep)
        tokens = decoding.step(tokens).argmax(dim=-1)
    return [[token for token in row if token >= 0] for row in generated.tolist()]


class BatchDecoding:
    """Sequences that grow by a token each at a time, over one cache; rows may leave, and others join.

    Example:
        decoding = BatchDecoding(model, LMHead(model), model.device)
        logits = decoding.prefill([[1, 2, 3], [4, 5]])     # [2, vocabulary]
        logits = decoding.step(logits.argmax(-1))          # behind one more token of each
    """

    def __init__(self, model: Any, head: LMHead, device: torch.device) -> None:
        self.model, self.head, self.device = model, head, device
        self.cache = DynamicCache(config=model.config)
        self.mask: torch.Tensor | None = None
        self.positions = torch.empty(0)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read the prompts; the logits behind each, [batch, vocabulary]."""
        tokens, mask = _left_padded(prompts, self.device)
        self.positions = mask.sum(1)
        # Without padding the causal kernel needs no mask, which is faster and exact.
        self.mask = None if bool(mask.all()) else mask
        return self._next(tokens, (mask.cumsum(1) - 1).clamp(min=0) if self.mask is not None else None)

    def prefill_groups(self, prompts: Sequence[Sequence[int]], groups: Sequence[Group]) -> torch.Tensor:
        """Read each group's common beginning once, copy its cache to the members, then read what is their own."""
        device = self.device
        tokens, mask = _left_padded([prompts[group.members[0]][: group.shared] for group in groups], device)
        self.mask = mask
        self._next(tokens, (mask.cumsum(1) - 1).clamp(min=0))
        owner = torch.tensor([at for at, group in enumerate(groups) for _ in group.members], device=device)
        self.cache.batch_select_indices(owner)
        suffixes = [prompts[index][group.shared :] for group in groups for index in group.members]
        tokens, suffix_mask = _left_padded(suffixes, device)
        before = mask.sum(1)[owner]
        self.mask = torch.cat([mask[owner], suffix_mask], dim=1)
        self.positions = before + suffix_mask.sum(1)
        return self._next(tokens, (before[:, None] + suffix_mask.cumsum(1) - 1).clamp(min=0))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token of each row, [batch]; the logits behind it, [batch, vocabulary]."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        positions = self.positions[:, None] if self.mask is not None else None
        following = self._next(tokens[:, None], positions)
        self.positions = self.positions + 1
        return following

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone, in this order."""
        self.cache.batch_select_indices(rows)
        self.positions = self.positions[rows]
        self.mask = self.mask[rows] if self.mask is not None else None

    def join(self, other: BatchDecoding) -> None:
        """Add another's rows behind the own ones; only where `can_share_prefixes(model)`.

        What no row needs any more is cut off in front, so that a batch that never empties grows no longer than its
        longest row.
        """
        self.mask = torch.cat(_aligned(self._whole_mask(), other._whole_mask(), dim=1))
        padding = int(self.mask.argmax(dim=1).min())
        for layer, added in zip(self.cache.layers, other.cache.layers, strict=True):
            for name in ("keys", "values"):
                joined = torch.cat(_aligned(getattr(layer, name), getattr(added, name), dim=-2))
                setattr(layer, name, joined[..., padding:, :].contiguous())
        self.mask = self.mask[:, padding:]
        self.positions = torch.cat([self.positions, other.positions])

    def _whole_mask(self) -> torch.Tensor:
        length, rows = self.cache.get_seq_length(), len(self.positions)
        return self.mask if self.mask is not None else self.positions.new_ones(rows, length)

    def _next(self, input_ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        kwargs = {
            "attention_mask": self.mask,
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        hidden = self.head.hidden(input_ids, **kwargs)
        if hidden is None:
            logits = self.model(input_ids=input_ids, **kwargs).logits[:, -1]
        else:
            logits = self.head.logits(hidden[:, -1])
        if input_ids.shape[1] > 1 and bool(logits.isnan().any()):
            raise UserError(f"{type(self.model).__name__} gives NaN logits while generating; its weights are broken")
        return logits


def _aligned(first: torch.Tensor, second: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with zeros in front, along a dimension, of the shorter one."""
    length = max(first.shape[dim], second.shape[dim])
    return _padded(first, length, dim), _padded(second, length, dim)


def _padded(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[dim] = length - shape[dim]
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim) if shape[dim] else tensor
