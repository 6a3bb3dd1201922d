"""One sequence of a batch: what it has generated, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import torch

from edgequant_registry.serving.answers import Answer, FinishReason
from edgequant_registry.serving.chat_text import ChatText
from edgequant_registry.serving.growing_text import GrowingText
from edgequant_registry.serving.requests import Request
from edgequant_registry.serving.waiting import Waiting

LOOK_S = 0.1


class Row:
    """A prompt and what follows it, token by token; `result` waits for its end.

    Args:
        prompt: token ids.
        most: new tokens, at most.
        waiting: when it is over, so is the row.
        say: takes each piece of text as it comes.
    """

    def __init__(
        self, prompt: Sequence[int], request: Request, text: ChatText, *, most: int, seed: int | None,
        waiting: Waiting, say: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.prompt, self._request, self._ends = prompt, request, text.ends
        self._most, self._waiting, self._say = most, waiting, say
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._said = GrowingText(text, prompt, request.stop)
        self._answer: Future[Answer] = Future()

    @property
    def done(self) -> bool:
        return self._answer.done()

    @property
    def longest(self) -> int:
        """Tokens of the sequence, at most."""
        return len(self.prompt) + self._most

    def result(self) -> Answer:
        """Waits; raises what went wrong. A long prompt is read in one step, so who waits looks at the time as well."""
        while True:
            with suppress(TimeoutError):
                return self._answer.result(LOOK_S)
            self.late()

    def fail(self, error: Exception) -> None:
        """End it without an answer."""
        with suppress(InvalidStateError):  # it has one
            self._answer.set_exception(error)

    def late(self) -> bool:
        """Whether nobody waits for it any more; it has ended then."""
        if not self.done and (why := self._waiting.over()) is not None:
            self.fail(why)
        return self.done

    def take(self, logits: torch.Tensor) -> int:
        """Choose the next token by the logits behind the sequence, [vocabulary]; `done` where it was the last."""
        token = choose(logits, self._request.temperature, self._request.top_p, self._generator)
        if token in self._ends:
            self._end("stop")
            return token
        self._said.add(token)
        if self._said.stopped:
            self._end("stop")
        elif len(self._said.tokens) >= self._most:
            self._end("length")
        elif not self.late() and self._say is not None and (piece := self._said.unsent()):
            self._say(piece)
        return token

    def _end(self, reason: FinishReason) -> None:
        text = self._said.finish()
        if self._say is not None and (rest := self._said.rest()):
            self._say(rest)
        reason = "stop" if self._said.stopped else reason
        with suppress(InvalidStateError):  # nobody waits
            self._answer.set_result(Answer(text, reason, len(self.prompt), len(self._said.tokens)))


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
