"""What a runtime and the torch reference give for the same texts, to be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from small_models import TEXT

from edgequant.evaluation.backends.language_model import Window


def perplexities(runtime: Any, reference: Any) -> list[float]:
    """Of both, over windows that overlap by half and one that scores its end alone."""
    tokens = runtime.encode(["\n".join(TEXT)])[0]
    windows = [Window(tuple(tokens[at : at + 100]), 99) for at in range(0, len(tokens) - 100, 50)]
    windows.append(Window(windows[0].tokens, 7))
    scored = 99 * len(windows) - 92
    return [math.exp(sum(dict(model.losses(windows)).values()) / scored) for model in (runtime, reference)]


def greedy_tokens_alike(runtime: Any, reference: Any, count: int) -> int:
    """How many of so many tokens behind a prompt are those that the reference finds likeliest, reading all anew."""
    prompt: Sequence[int] = runtime.encode([TEXT[0]])[0]
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            likeliest = reference.model(tokens).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, likeliest], dim=1)
    expected = tokens[0, len(prompt) :].tolist()
    return sum(a == b for a, b in zip(runtime.greedy(prompt, count), expected, strict=True))
