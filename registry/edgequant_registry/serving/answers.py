"""Answers, and the JSON that OpenAI's clients read them from."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from edgequant_registry.serving.requests import Request
from edgequant_registry.serving.waiting import Waiting

FinishReason = Literal["stop", "length"]
Say = Callable[[int, str], None]
"""Takes a piece of the answer to the prompt of that number, as soon as it has come."""


@dataclass(frozen=True)
class Answer:
    """What was generated for one chat or one prompt.

    Attributes:
        finish_reason: `stop`: the model, or a text of `stop`, ended it; `length`: max_tokens or the context did.
        prompt_tokens, completion_tokens: without the token that ended it.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """What runs the model; called from several threads at once."""

    name: str

    def answer(self, request: Request, waiting: Waiting, say: Say | None = None) -> list[Answer]:
        """One answer to a chat, or one to each prompt, in their order. The pieces that are said make up its text.

        Raises:
            BadRequestError: the model cannot answer it: too long, no chat template, roles in an order that it refuses.
            UnansweredError: nobody waits any more, and the work has stopped.
        """


def to_openai(request: Request, answers: Sequence[Answer], model: str) -> dict[str, Any]:
    """The response object of a chat or of a completion."""
    choices = [choice(request, at, answer.text, answer.finish_reason) for at, answer in enumerate(answers)]
    return heading(request, model) | {"choices": choices, "usage": usage(answers)}


def heading(request: Request, model: str) -> dict[str, Any]:
    """What a response begins with; that of a stream's chunks is the same in each."""
    chat = bool(request.messages)
    kind = "chat.completion" if chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": f"{kind}.chunk" if chat and request.stream else kind,
        "created": int(time.time()),
        "model": model,
    }


def choice(request: Request, index: int, text: str | None, reason: FinishReason | None) -> dict[str, Any]:
    """One of `choices`: an answer, or of a stream a piece of it; None where there is no more text."""
    said: dict[str, Any] = {"text": text or ""}
    if request.messages and request.stream:
        said = {"delta": {} if text is None else {"content": text}}
    elif request.messages:
        said = {"message": {"role": "assistant", "content": text}}
    return {"index": index, **said, "logprobs": None, "finish_reason": reason}


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens that were read and generated for all answers together."""
    prompt, completion = sum(each.prompt_tokens for each in answers), sum(each.completion_tokens for each in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
