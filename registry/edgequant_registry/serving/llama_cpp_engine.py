"""Answers by llama.cpp, where a GGUF file lies beside the checkpoint and xllamacpp is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.server import start_server
from edgequant.models.manifest import verify_if_ours
from edgequant_registry.serving.answers import Answer, FinishReason
from edgequant_registry.serving.refusal import BadRequestError, no_template, too_long
from edgequant_registry.serving.requests import Request
from edgequant_registry.serving.threads import threads_of_a_worker

PARALLEL = 4  # requests at once
PLAIN = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "reasoning_format": "none"}


class LlamaCppEngine:
    """The GGUF file beside a checkpoint in llama.cpp, which takes requests of several threads side by side.

    Raises:
        UserError: a file is damaged, or llama.cpp does not load it.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        verify_if_ours(folder)
        self.name = "llama.cpp"
        self._has_template = has_chat_template(folder)
        self._server = start_server(file, threads=threads_of_a_worker(), parallel=PARALLEL)

    def answer(self, request: Request) -> list[Answer]:
        options = PLAIN | {
            "max_tokens": request.max_tokens, "temperature": request.temperature, "top_p": request.top_p,
            "stop": list(request.stop), **({} if request.seed is None else {"seed": request.seed % 2**32}),
        }  # fmt: skip
        if request.messages:
            if not self._has_template:
                raise no_template()
            messages = list(request.messages)
            return [_answer(self._server.handle_chat_completions({"messages": messages, **options}))]
        return [_answer(self._server.handle_completions({"prompt": text, **options})) for text in request.prompts]


def has_chat_template(folder: Path) -> bool:
    """Whether a checkpoint's tokenizer knows how a chat is written."""
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def _answer(said: dict[str, Any]) -> Answer:
    if error := said.get("error"):
        if error.get("type") == "exceed_context_size_error":
            raise too_long(error["n_prompt_tokens"], error["n_ctx"])
        if error.get("type") == "invalid_request_error" or error.get("code") == 400:
            raise BadRequestError(str(error.get("message")))
        raise UserError(f"llama.cpp could not answer: {error.get('message')}; start the server again")
    (choice,), usage = said["choices"], said["usage"]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    reason: FinishReason = "length" if choice["finish_reason"] == "length" else "stop"
    return Answer(text or "", reason, usage["prompt_tokens"], usage["completion_tokens"])
