"""What is left to MLflow's app: data frames, CSV and lists of requests; errors are said as everywhere else."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from edgequant_registry.serving.http.bodies import header
from edgequant_registry.serving.refusal import BadRequestError, UnansweredError
from edgequant_registry.serving.waiting import Waiting, asking

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
JSON = (b"content-type", b"application/json")

_log = logging.getLogger("uvicorn.error")


async def ask_mlflow(app: Any, scope: dict[str, Any], body: bytes, waiting: Waiting, send: Send) -> None:
    """Let MLflow's app answer a request whose body has been read.

    Raises:
        UnansweredError: in place of an answer of MLflow's that is none: without the body or a stack trace in it.
    """
    asking.set(waiting)  # the model is called in a copy of this context
    headers = scope["headers"] if header(scope, "content-type") else [*scope["headers"], JSON]
    answer = _Answer(send)
    try:
        await app(scope | {"headers": headers}, _receiver(body, waiting), answer.take)
    except Exception as error:
        _log.warning(f"edgequant: MLflow's server could not read a request: {type(error).__name__}: {error}")
        if answer.sent:
            raise
        raise BadRequestError(f"the body is of none of MLflow's forms: {type(error).__name__}: {error}") from error
    await answer.finish()


def _receiver(body: bytes, waiting: Waiting) -> Callable[[], Awaitable[Message]]:
    given = False

    async def receive() -> Message:
        nonlocal given
        while given and waiting.over() is None:
            await asyncio.sleep(0.2)
        message: Message = {"type": "http.request", "body": body, "more_body": False}
        message = {"type": "http.disconnect"} if given else message
        given = True
        return message

    return receive


class _Answer:
    """Sends on what has a good status, and keeps the rest."""

    def __init__(self, send: Send) -> None:
        self._send, self._status, self._kept = send, 0, bytearray()
        self.sent = False

    async def take(self, message: Message) -> None:
        self._status = message.get("status", self._status)
        if self._status < 400:
            self.sent = True
            await self._send(message)
        else:
            self._kept += message.get("body", b"")

    async def finish(self) -> None:
        if self._status >= 400:
            raise _said(self._status, bytes(self._kept))


def _said(status: int, content: bytes) -> UnansweredError:
    """An error of MLflow's in one line: its message, and not the stack trace beside it."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = {}
    found = found if isinstance(found, dict) else {}
    error: Any = found.get("error")
    error = error if isinstance(error, dict) else {}
    message = str(found.get("message") or found.get("detail") or text)
    kind = error.get("type") or ("invalid_request_error" if status < 500 else "server_error")
    return UnansweredError(message, error.get("param"), status=status, kind=kind)
