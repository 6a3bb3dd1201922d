"""Answers, and the JSON that OpenAI's clients read them from."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from edgequant_registry.serving.requests import Request

FinishReason = Literal["stop", "length"]


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

    def answer(self, request: Request) -> list[Answer]:
        """One answer to a chat, or one to each prompt, in their order.

        Raises:
            BadRequestError: the model cannot answer it: too long, no chat template, roles in an order that it refuses.
        """


def to_openai(request: Request, answers: Sequence[Answer], model: str) -> dict[str, Any]:
    """The response object of a chat or of a completion."""
    chat = bool(request.messages)
    prompt, completion = sum(each.prompt_tokens for each in answers), sum(each.completion_tokens for each in answers)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(at, answer, chat) for at, answer in enumerate(answers)],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def _choice(index: int, answer: Answer, chat: bool) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": answer.text}} if chat else {"text": answer.text}
    return {"index": index, **said, "logprobs": None, "finish_reason": answer.finish_reason}
