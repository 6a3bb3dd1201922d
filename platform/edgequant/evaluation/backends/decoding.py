"""Timed greedy decoding: through plain `generate`, and through a static cache with a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StaticCache

from edgequant.evaluation.backends.language_model import DecodeTiming


def methods(model: Any) -> tuple[str, ...]:
    """`generate`, and `static` where the architecture takes a static cache."""
    supported = getattr(model, "_can_compile_fullgraph", False) or getattr(model, "_supports_static_cache", False)
    return ("generate", "static") if supported else ("generate",)


@torch.no_grad()
def timings(model: Any, prompt: torch.Tensor, method: str, new_tokens: int, repetitions: int) -> Iterator[DecodeTiming]:
    """Seconds to the first token and to the last, once per repetition; the caller discards its warm-up.

    Args:
        prompt: token ids [batch, length] on the model's device.
        method: `generate`, or `static`: a preallocated cache, and on a GPU one CUDA graph replayed per token.
    """
    if method == "generate":
        for _ in range(repetitions):
            first = _seconds(lambda: _generate(model, prompt, 1), prompt.device)
            total = _seconds(lambda: _generate(model, prompt, new_tokens), prompt.device)
            yield DecodeTiming(first, total, new_tokens)
        return
    decoder = StaticDecoder(model, prompt.shape[1] + new_tokens)
    for _ in range(repetitions):
        first = _seconds(lambda: decoder.begin(prompt), prompt.device)
        rest = _seconds(lambda: decoder.advance(new_tokens - 1), prompt.device)
        yield DecodeTiming(first, first + rest, new_tokens)


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The token [batch, 1] that logits [batch, vocabulary] give the most to."""
    return logits.argmax(-1, keepdim=True)


class StaticDecoder:
    """Decoding over a preallocated cache; on a GPU the step is captured once as a CUDA graph and replayed.

    Example:
        decoder = StaticDecoder(model, 512 + 128)
        decoder.begin(prompt)            # [batch, 512]
        tokens = decoder.advance(127)    # [batch, 127]

    Args:
        length: tokens of a prompt and what is decoded behind it.
        choose: the next token [batch, 1], int64, by logits [batch, vocabulary]; on a GPU it is captured too, so that it
            may draw random numbers and must not wait for the device.
    """

    def __init__(self, model: Any, length: int, choose: Callable[[torch.Tensor], torch.Tensor] = likeliest) -> None:
        self.model, self.choose = model, choose
        self.cache = StaticCache(config=model.config, max_cache_len=length)
        self.token = torch.empty(0)
        self.graph: Any = None

    @torch.no_grad()
    def begin(self, prompt: torch.Tensor) -> torch.Tensor:
        """Read the prompt [batch, length]; the first token of each row, [batch, 1]."""
        self.cache.reset()
        logits = self.model(input_ids=prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        first = self.choose(logits[:, -1])
        if self.token.shape == first.shape:
            self.token.copy_(first)  # the graph reads and writes this very tensor
        else:
            self.token = first.clone()
        return first

    @torch.no_grad()
    def advance(self, steps: int) -> torch.Tensor:
        """Decode `steps` more tokens: [batch, steps]."""
        if self.token.is_cuda and self.graph is None and self._capturable():
            self._capture()
        generated = []
        for _ in range(steps):
            if self.graph is None:
                self._step()
            else:
                self.graph.replay()
            generated.append(self.token.clone())
        return torch.cat(generated, dim=1) if generated else self.token[:, :0]

    def _step(self) -> None:
        logits = self.model(input_ids=self.token, past_key_values=self.cache, use_cache=True).logits
        self.token.copy_(self.choose(logits[:, -1]))

    def _capturable(self) -> bool:
        """A sliding-window layer counts its positions in Python, which a replayed graph would not advance."""
        return not any(getattr(layer, "is_sliding", False) for layer in self.cache.layers)

    @staticmethod
    def _position(layer: Any) -> torch.Tensor:
        return layer.cumulative_length

    def _capture(self) -> None:
        """Capture one step; warm-up steps and the capture itself are undone in the cache's position and the token."""
        lengths = [self._position(layer).clone() for layer in self.cache.layers]
        token = self.token.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._step()
                self._restore(lengths, token)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self._restore(lengths, token)
        self.graph = graph

    def _restore(self, lengths: list[torch.Tensor], token: torch.Tensor) -> None:
        for layer, length in zip(self.cache.layers, lengths, strict=True):
            self._position(layer).copy_(length)
        self.token.copy_(token)


def _generate(model: Any, prompt: torch.Tensor, new_tokens: int) -> Any:
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=0,
    )


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _settle(device)
    start = time.perf_counter()
    work()
    _settle(device)
    return time.perf_counter() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
