"""One sequence of a batch: what it has generated, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from edgequant_registry.serving.answers import Answer, FinishReason
from edgequant_registry.serving.chat_text import ChatText
from edgequant_registry.serving.requests import Request


class Row:
    """A prompt and what follows it, token by token; `result` waits for its end.

    Args:
        prompt: token ids.
        most: new tokens, at most.
        deadline: of `time.monotonic`, from when nobody waits for it any more.
    """

    def __init__(
        self, prompt: Sequence[int], request: Request, text: ChatText, *, most: int, seed: int | None,
        deadline: float | None,
    ) -> None:  # fmt: skip
        self.prompt, self._request, self._text = prompt, request, text
        self._most, self._deadline = most, deadline
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._tokens: list[int] = []
        self._answer: Future[Answer] = Future()

    @property
    def done(self) -> bool:
        return self._answer.done()

    def result(self) -> Answer:
        """Waits; raises what went wrong."""
        return self._answer.result()

    def fail(self, error: Exception) -> None:
        """End it without an answer."""
        if not self.done:
            self._answer.set_exception(error)

    def late(self) -> bool:
        """Whether nobody waits for it any more; it has ended then."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.fail(TimeoutError("the server's time for a request is over"))
        return self.done

    def take(self, logits: torch.Tensor) -> int:
        """Choose the next token by the logits behind the sequence, [vocabulary]; `done` where it was the last."""
        token = choose(logits, self._request.temperature, self._request.top_p, self._generator)
        if token in self._text.ends:
            self._end("stop")
        else:
            self._tokens.append(token)
            if self._stop_text() is not None:
                self._end("stop")
            elif len(self._tokens) >= self._most:
                self._end("length")
            else:
                self.late()
        return token

    def _stop_text(self) -> int | None:
        """Where the first text of `stop` begins."""
        if not self._request.stop:
            return None
        text = self._text.decode(self._tokens, after=self.prompt)
        return min((at for stop in self._request.stop if (at := text.find(stop)) >= 0), default=None)

    def _end(self, reason: FinishReason) -> None:
        text = self._text.decode(self._tokens, after=self.prompt)
        self._answer.set_result(Answer(text[: self._stop_text()], reason, len(self.prompt), len(self._tokens)))


def choose(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> int:
    """A token by its logits [vocabulary]: the likeliest at temperature 0, else drawn from the nucleus of `top_p`.

    Nucleus sampling is Holtzman et al. 2020, section 3.1: the fewest tokens whose probabilities sum up to `top_p`.
    """
    if temperature == 0:
        return int(logits.argmax())
    scores = logits.float().cpu()
    probabilities = ((scores - scores.max()) / temperature).softmax(-1)
    if top_p < 1:
        likeliest, order = probabilities.sort(descending=True)
        before = likeliest.cumsum(-1) - likeliest
        probabilities = torch.zeros_like(probabilities).scatter(0, order, likeliest.where(before < top_p, 0.0))
    return int(torch.multinomial(probabilities, 1, generator=generator))
