"""Bodies of requests: read no further than the limit, and as JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from edgequant_registry.serving.refusal import BadRequestError, client_gone, too_large, too_late
from edgequant_registry.serving.waiting import Waiting

Receive = Callable[[], Awaitable[dict[str, Any]]]
MB = 1e6
THROWN_AWAY = 64e6  # bytes that a client may still send before it reads that they are too many


def header(scope: dict[str, Any], name: str) -> str:
    """A header of a request, or an empty text."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()), "")


async def read_body(scope: dict[str, Any], receive: Receive, megabytes: float, waiting: Waiting) -> bytes:
    """The whole body.

    Raises:
        UnansweredError: it is too large (no more than the limit is ever held), or the client is too slow or gone.
    """
    length = header(scope, "content-length")
    stated = int(length) if length.isdigit() and len(length) < 20 else 0
    try:
        async with asyncio.timeout(waiting.left_s()):
            if stated > megabytes * MB:
                if not header(scope, "expect"):
                    await _throw_away(receive)
                raise too_large(megabytes)
            return await _read(receive, megabytes)
    except TimeoutError:
        raise waiting.over() or too_late(0) from None


async def _read(receive: Receive, megabytes: float) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise client_gone()
        body += message.get("body", b"")
        if len(body) > megabytes * MB:
            if message.get("more_body"):
                body.clear()
                await _throw_away(receive)
            raise too_large(megabytes)
        if not message.get("more_body"):
            return bytes(body)


async def _throw_away(receive: Receive) -> None:
    """A client reads the answer after it has sent all, if it does not find the connection closed before."""
    thrown = 0
    while thrown < THROWN_AWAY:
        message = await receive()
        thrown += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


def json_of(body: bytes) -> Any:
    """What a body says.

    Raises:
        BadRequestError: not JSON, or lists in lists without end.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise BadRequestError("the body must be a JSON object, got one that is nested too deeply") from None
    except ValueError as error:
        raise BadRequestError(f"the body must be a JSON object, got {error}") from error
