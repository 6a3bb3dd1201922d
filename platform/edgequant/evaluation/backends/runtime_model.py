"""What models in a runtime of devices share: one sequence, logits a few rows at once, figures of fresh processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgequant.errors import UserError
from edgequant.evaluation.backends.alone import Alone
from edgequant.evaluation.backends.language_model import Choice, DecodeTiming, Window

FOOTPRINT_TOKENS = 128


class RuntimeModel(ABC):
    """Scores token by token what its sequence reads; requests in an order in which neighbours begin alike."""

    context_length: int
    _name: str
    _sequence: Any
    _peak_rss: int | None = None

    @abstractmethod
    def _array(self, logits: Any, rows: int) -> np.ndarray:
        """Logits as the sequence gives them, [rows, vocabulary] float32."""

    @abstractmethod
    def _time_alone(self, prompt_length: int, new_tokens: int, seed: int) -> Alone:
        """One repetition in a fresh process."""

    @property
    def decode_methods(self) -> tuple[str, ...]:
        return ("generate",)  # a runtime's cache is static anyway

    def losses(self, windows: Sequence[Window]) -> Iterator[tuple[int, float]]:
        for index in sorted(range(len(windows)), key=lambda at: windows[at].tokens):
            tokens, first = windows[index].tokens, len(windows[index].tokens) - windows[index].scored
            yield index, -self._following(tokens, first)

    def log_likelihoods(self, choices: Sequence[Choice]) -> Iterator[tuple[int, tuple[float, ...]]]:
        for index in sorted(range(len(choices)), key=lambda at: choices[at].context):
            context, parts = choices[index].context, choices[index].continuations
            (last,) = self._sequence.rows(context, len(context) - 1)
            begun = self._log_probabilities(last.logits, 1)[0, [part[0] for part in parts]].tolist()
            rest = [self._following(context + part, len(context) + 1) for part in parts]
            yield index, tuple(map(sum, zip(begun, rest, strict=True)))

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        """The likeliest tokens behind a prompt, one after the other."""
        (last,) = self._sequence.rows(prompt, len(prompt) - 1)
        logits = last.logits
        for left in reversed(range(new_tokens)):
            token = int(self._array(logits, 1).argmax())
            yield token
            logits = self._sequence.next(token) if left else None

    def decode_timings(
        self, method: str, prompt_length: int, batch_size: int, new_tokens: int, repetitions: int, seed: int
    ) -> Iterator[DecodeTiming]:
        for repetition in range(repetitions if batch_size == 1 else 0):
            alone = self._alone(prompt_length, new_tokens, seed + repetition)
            yield DecodeTiming(alone.first_token, alone.total, new_tokens, alone.load)

    def _alone(self, prompt_length: int, new_tokens: int, seed: int) -> Alone:
        alone = self._time_alone(prompt_length, new_tokens, seed)
        self._peak_rss = max(self._peak_rss or 0, alone.peak_rss)
        return alone

    def _peak(self) -> int:
        """The largest peak of memory of a fresh process so far, in bytes."""
        if self._peak_rss is None:
            self._alone(min(FOOTPRINT_TOKENS, self.context_length - 2), 2, 0)
        return self._peak_rss or 0

    def _following(self, tokens: Sequence[int], first: int) -> float:
        """Summed log-probability in nats of the tokens from position `first` on, each given all before it."""
        total = 0.0
        if first < len(tokens):
            for rows in self._sequence.rows(tokens[:-1], first - 1):
                found = self._log_probabilities(rows.logits, len(rows.positions))
                following = tokens[rows.positions.start + 1 : rows.positions.stop + 1]
                total += float(found[np.arange(len(following)), list(following)].sum(dtype=np.float64))
        return total

    def _log_probabilities(self, logits: Any, rows: int) -> np.ndarray:
        """Of every token, in nats [rows, vocabulary]."""
        found = self._array(logits, rows)
        shifted = found - found.max(axis=1, keepdims=True)
        if np.isnan(shifted).any():
            raise UserError(f"{self._name} gives NaN logits; its weights are broken")
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64))
