"""From hidden states to log-likelihoods without a logits tensor for every position."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

_LOGIT_BYTES = {"cuda": 512 << 20, "cpu": 64 << 20}


class LMHead:
    """A causal model taken apart into its decoder and its vocabulary projection, checked against the whole.

    Perplexity needs hidden states everywhere but only a few thousand rows of logits at a time: a window of 2,048 tokens
    over a vocabulary of 152 k is 1.2 GB in fp32, per sequence. Where the parts do not reproduce the model's own logits
    (an architecture with more than a linear head and a soft cap), `hidden` is None and callers use the whole model.
    """

    def __init__(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.model = model
        self.decoder = _decoder_of(inner)
        self.projection = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        self.soft_cap = getattr(config, "final_logit_softcapping", None)
        self._agrees: bool | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., vocabulary], in the model's dtype, soft-capped where the model does so."""
        assert self.projection is not None
        # As the model itself would call it: compressed-tensors tells tokens apart by the second of three dimensions.
        logits = self.projection(hidden.reshape(1, -1, hidden.shape[-1])).view(*hidden.shape[:-1], -1)
        return torch.tanh(logits / self.soft_cap) * self.soft_cap if self.soft_cap else logits

    def hidden(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor | None:
        """Last hidden states [batch, length, hidden], or None where the parts are not the whole."""
        if self._agrees is None:
            self._agrees = self._reproduces_the_model(input_ids[:1, :8])
        if not self._agrees:
            return None
        assert self.decoder is not None
        return self.decoder(input_ids=input_ids, **{"use_cache": False, **kwargs})[0]

    def _reproduces_the_model(self, input_ids: torch.Tensor) -> bool:
        if self.decoder is None or self.projection is None:
            return False
        whole = self.model(input_ids=input_ids, use_cache=False).logits[:, -1].float()
        hidden = self.decoder(input_ids=input_ids, use_cache=False)[0][:, -1]
        parts = self.logits(hidden).float()
        if whole.shape != parts.shape:
            return False
        if bool(whole.isnan().any()):
            return bool(parts.isnan().any())  # broken either way; whoever reads the scores says so
        # Half precision rounds the two products differently; a missing scale or cap is off by far more.
        return bool(torch.allclose(whole, parts, rtol=0.05, atol=0.02 * float(whole.abs().max().clamp(min=1e-6))))


def token_losses(head: LMHead, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats, [rows], of `targets` [rows] given `hidden` [rows, hidden].

    Logits exist for a bounded number of rows at a time and the softmax is taken in fp32.
    """
    rows = _rows_at_once(hidden.device, _vocabulary(head))
    return torch.cat([logit_losses(head.logits(h), t) for h, t in zip(hidden.split(rows), targets.split(rows))])  # noqa: B905


def logit_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats, [rows], from logits [rows, vocabulary] of any dtype, in fp32, piece by piece."""
    rows = _rows_at_once(logits.device, logits.shape[-1])
    pieces = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.cat([functional.cross_entropy(part.float(), target, reduction="none") for part, target in pieces])


def _vocabulary(head: LMHead) -> int:
    config = head.model.config
    return int((config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size)


def _rows_at_once(device: torch.device, vocabulary: int) -> int:
    # Logits, their fp32 copy and the log-softmax live at once.
    return max(1, _LOGIT_BYTES.get(device.type, 64 << 20) // (vocabulary * 12))


def _decoder_of(model: Any) -> Any:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "model", None)
    return decoder if decoder is not None and decoder is not model else None
