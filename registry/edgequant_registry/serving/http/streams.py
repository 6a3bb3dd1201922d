"""Answers sent as they come: server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

from edgequant_registry.serving.answers import Answer, choice, heading, usage
from edgequant_registry.serving.refusal import UnansweredError
from edgequant_registry.serving.requests import Request
from edgequant_registry.serving.waiting import Waiting

Send = Callable[[dict[str, Any]], Awaitable[None]]
Piece = tuple[int, str]
LOOK_S = 0.1
LAST_S = 0.5  # that a client still has to read why there is no more
DONE = b"data: [DONE]\n\n"
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def stream(
    threads: Executor, work: Callable[..., list[Answer]], request: Request, model: str, waiting: Waiting, send: Send
) -> None:
    """Send the chunks of an answer, each when it has come.

    Args:
        work: called in a thread with a function that takes pieces of text; returns the whole answers.

    Raises:
        UnansweredError: before the first piece, when a status can still say so; later it is the stream's last event.
    """
    events = _events(threads, work, waiting)
    begun = False
    try:
        async for chunk in _chunks(request, model, events):
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await _send(send, chunk, waiting)
        await _send(send, b"", waiting)
    except UnansweredError as refusal:
        if not begun:
            raise
        last = Waiting(LAST_S)
        with suppress(UnansweredError):  # a client that reads nothing is left
            await _send(send, _event(json.loads(refusal.serialize_as_json())), last)
            await _send(send, b"", last)


async def _chunks(request: Request, model: str, events: AsyncIterator[Piece | list[Answer]]) -> AsyncIterator[bytes]:
    same = heading(request, model) | ({"usage": None} if request.include_usage else {})
    greeted: set[int] = set()
    async for event in events:
        pieces = [event] if isinstance(event, tuple) else [(at, "") for at in range(len(event))]
        for at, text in pieces:
            if request.messages and at not in greeted:  # an assistant's message begins with whose it is
                greeted.add(at)
                first = choice(request, at, "", None)
                first["delta"] = {"role": "assistant", "content": ""}
                yield _event({**same, "choices": [first]})
            if text:
                yield _event({**same, "choices": [choice(request, at, text, None)]})
        if isinstance(event, list):
            for at, answer in enumerate(event):
                yield _event({**same, "choices": [choice(request, at, None, answer.finish_reason)]})
            if request.include_usage:
                yield _event({**same, "choices": [], "usage": usage(event)})
            yield DONE


async def _events(
    threads: Executor, work: Callable[..., list[Answer]], waiting: Waiting
) -> AsyncIterator[Piece | list[Answer]]:
    """Pieces of text as they come, at the end the answers."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()
    future = threads.submit(work, lambda at, text: loop.call_soon_threadsafe(queue.put_nowait, (at, text)))
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(queue.put_nowait, None))
    while True:
        try:
            piece = await asyncio.wait_for(queue.get(), LOOK_S)
        except TimeoutError:
            if (why := waiting.over()) is not None:
                raise why from None
            continue
        if piece is None:
            yield future.result()
            return
        yield piece


async def _send(send: Send, content: bytes, waiting: Waiting) -> None:
    """Nothing, the last time. A client that does not read what it asked for is waited for no longer than it waits."""
    sent = asyncio.ensure_future(send({"type": "http.response.body", "body": content, "more_body": bool(content)}))
    while not (await asyncio.wait({sent}, timeout=LOOK_S))[0]:
        if (why := waiting.over()) is not None:
            sent.cancel()
            raise why
    sent.result()


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
