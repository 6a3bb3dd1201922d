"""Answers by llama.cpp, where a GGUF file lies beside the checkpoint and xllamacpp is installed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.server import CONTEXT, start_server
from edgequant.models.manifest import verify_if_ours
from edgequant.models.sources import context_length
from edgequant_registry.serving.answers import Answer, FinishReason, Say
from edgequant_registry.serving.refusal import BadRequestError, no_template, refuse_what_cannot_fit, too_long
from edgequant_registry.serving.requests import Request
from edgequant_registry.serving.threads import threads_of_a_worker
from edgequant_registry.serving.waiting import Waiting

PARALLEL = 4  # requests at once
LOOK_S = 0.1  # how often who waits for a turn looks whether it still has to
SEEDS = 2**32 - 1  # the last of 32 bits is llama.cpp's name for none
PLAIN = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "reasoning_format": "none"}
STREAM = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}


class LlamaCppEngine:
    """The GGUF file beside a checkpoint in llama.cpp, which takes requests of several threads side by side.

    Raises:
        UserError: a file is damaged, or llama.cpp does not load it.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        verify_if_ours(folder)
        self.name = "llama.cpp"
        self._has_template, self._longest_token = has_chat_template(folder), longest_token(folder)
        self._context = min(CONTEXT, context_length(str(folder)) or CONTEXT)
        self._server = start_server(file, threads=threads_of_a_worker(), parallel=PARALLEL)
        self._turns = threading.BoundedSemaphore(PARALLEL)

    def answer(self, request: Request, waiting: Waiting, say: Say | None = None) -> list[Answer]:
        if request.messages and not self._has_template:
            raise no_template()
        texts = [message["content"] for message in request.messages] or request.prompts
        for text in texts:
            refuse_what_cannot_fit(len(text) if isinstance(text, str) else 0, self._longest_token, self._context)
        ask = self._server.handle_chat_completions if request.messages else self._server.handle_completions
        asked: list[dict[str, Any]] = (
            [{"messages": list(request.messages)}] if request.messages
            else [{"prompt": prompt if isinstance(prompt, str) else list(prompt)} for prompt in request.prompts]
        )  # fmt: skip
        options: dict[str, Any] = {
            **PLAIN, **STREAM,
            # one slot's context: llama.cpp would take a number beyond 32 bits for none
            "max_tokens": min(request.max_tokens, CONTEXT), "temperature": request.temperature,
            "top_p": request.top_p, "stop": list(request.stop),
            **({} if request.seed is None else {"seed": request.seed % SEEDS}),
        }  # fmt: skip
        return [
            self._one(partial(ask, each | options), waiting, None if say is None else partial(say, at))
            for at, each in enumerate(asked)
        ]

    def _one(self, ask: Callable[..., Any], waiting: Waiting, say: Callable[[str], None] | None) -> Answer:
        heard = _Heard(waiting, say)
        with self._turn(waiting):
            try:
                ask(heard.take)
            except (RuntimeError, ValueError) as error:  # as llama.cpp's template refuses messages
                raise BadRequestError(f"llama.cpp cannot answer these messages or this prompt: {error}") from error
        return heard.answer()

    @contextmanager
    def _turn(self, waiting: Waiting) -> Iterator[None]:
        """Of those that llama.cpp answers at once: what it has taken can be stopped between its tokens alone."""
        while not self._turns.acquire(timeout=LOOK_S):
            if (why := waiting.over()) is not None:
                raise why
        try:
            yield
        finally:
            self._turns.release()


class _Heard:
    """What a stream of llama.cpp has brought."""

    def __init__(self, waiting: Waiting, say: Callable[[str], None] | None) -> None:
        self._waiting, self._say = waiting, say
        self._pieces: list[str] = []
        self._reason: FinishReason = "stop"
        self._usage: dict[str, int] | None = None
        self._error: Exception | None = None

    def take(self, chunk: dict[str, Any]) -> bool:
        """Whether llama.cpp should stop."""
        self._error = self._waiting.over() or (_refused(chunk["error"]) if "error" in chunk else None)
        if self._error is not None:
            return True
        for choice in chunk.get("choices", ()):
            if choice.get("finish_reason"):
                self._reason = "length" if choice["finish_reason"] == "length" else "stop"
            if piece := choice.get("delta", {}).get("content") or choice.get("text"):
                self._pieces.append(piece)
                if self._say is not None:
                    self._say(piece)
        self._usage = chunk.get("usage") or self._usage
        return False

    def answer(self) -> Answer:
        if self._error is not None:
            raise self._error
        if self._usage is None:
            raise UserError("llama.cpp ended an answer without saying how; start the server again")
        usage = self._usage
        return Answer("".join(self._pieces), self._reason, usage["prompt_tokens"], usage["completion_tokens"])


def longest_token(folder: Path) -> int:
    """Characters of the longest token of a checkpoint's tokenizer."""
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = [token if isinstance(token, str) else token[0] for token in found["model"]["vocab"]]
    return max(map(len, [*vocabulary, *(added["content"] for added in found.get("added_tokens", ()))]))


def has_chat_template(folder: Path) -> bool:
    """Whether a checkpoint's tokenizer knows how a chat is written."""
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def _refused(error: dict[str, Any]) -> Exception:
    if error.get("type") == "exceed_context_size_error":
        return too_long(error["n_prompt_tokens"], error["n_ctx"])
    if error.get("type") == "invalid_request_error" or error.get("code") == 400:
        return BadRequestError(str(error.get("message")))
    return UserError(f"llama.cpp could not answer: {error.get('message')}; start the server again")
