"""The one interface that every measure uses, whatever runs the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Window:
    """A token sequence of which the last `scored` tokens are predicted from everything before them."""

    tokens: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class Choice:
    """A context and the continuations whose log-likelihoods are wanted, all as token ids."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Tokens that the model must read for the longest continuation."""
        return len(self.context) + max(map(len, self.continuations)) - 1


@dataclass(frozen=True)
class Generated:
    """A greedy answer: its text up to the first line end, and how many tokens were generated for it."""

    text: str
    tokens: int


@dataclass(frozen=True)
class DecodeTiming:
    """Seconds of one repetition: until the first token, and from start to the last of `new_tokens`; and before that, to
    load the model, where a process of its own did."""

    first_token: float
    total: float
    new_tokens: int
    load: float | None = None


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model that scores and generates. Results come in any order, each with its request's index."""

    context_length: int
    """Longest sequence in tokens that the model can read."""

    bos: int | None
    """Token that every sequence begins with, or None."""

    start_token: int
    """What a text without context is conditioned on where there must be something: BOS, else the end-of-text token."""

    description: dict[str, str]
    """What decides the numbers besides the weights: dtype, device, library versions, threads."""

    on_gpu: bool

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, beginning with BOS where the family needs it."""

    def encode_choices(self, contexts: Sequence[str], continuations: Sequence[str]) -> list[Choice]:
        """Token ids of each context with the same continuations, split where the context alone would end."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""

    def render_chat(self, question: str) -> str:
        """The question as a chat template shows it to an instruct model, ready for the answer."""

    def losses(self, windows: Sequence[Window]) -> Iterator[tuple[int, float]]:
        """Summed negative log-likelihood in nats of each window's scored tokens."""

    def log_likelihoods(self, choices: Sequence[Choice]) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Log-likelihood in nats of each continuation given its context."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[tuple[int, Generated]]:
        """Greedy answers up to the first line end, an end-of-text token or `max_new_tokens`."""

    def decode_timings(
        self, method: str, prompt_length: int, batch_size: int, new_tokens: int, repetitions: int, seed: int
    ) -> Iterable[DecodeTiming]:
        """Timed greedy decoding of random prompts; `method` is one of `decode_methods`."""

    @property
    def decode_methods(self) -> tuple[str, ...]:
        """`generate` first, then `static` (static cache, CUDA graph) where the model allows it."""

    def weights_digest(self) -> str:
        """SHA-256 over every weight: equal digests give equal scores to equal tokens."""

    def footprint(self, checkpoint: Path | None = None) -> dict[str, float]:
        """Sizes under `size/...`; `checkpoint` is the folder or file that the model was loaded from."""
