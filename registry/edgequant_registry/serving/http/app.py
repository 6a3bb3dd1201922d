"""The server's app: OpenAI's paths and MLflow's, within limits, until the client goes or the server ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from edgequant_registry.serving.answers import Engine, to_openai
from edgequant_registry.serving.http.bodies import header, json_of, read_body
from edgequant_registry.serving.http.hook import call_when_told_to_end
from edgequant_registry.serving.http.mlflow_paths import ask_mlflow
from edgequant_registry.serving.http.streams import stream
from edgequant_registry.serving.limits import Limits
from edgequant_registry.serving.refusal import (
    BadRequestError,
    UnansweredError,
    crowded,
    refusing,
    server_ends,
)  # fmt: skip
from edgequant_registry.serving.requests import Request, parse
from edgequant_registry.serving.waiting import Waiting, seconds_of_a_request

PATHS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}  # and the field that makes such a request
MODELS, INVOCATIONS = "/v1/models", "/invocations"
GRACE_S = 2.0  # that requests are still answered when the server is told to end
LOOK_S = 0.1  # how often it is looked whether somebody still waits

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_log = logging.getLogger("uvicorn.error")


class ServingApp:
    """An ASGI app around MLflow's, which answers what is MLflow's alone: its other paths and its forms of requests.

    Args:
        model: its name, as the responses state it.
    """

    def __init__(self, mlflows: Any, *, model: str, engine: Engine, limits: Limits) -> None:
        self._mlflows, self._model, self._engine, self._limits = mlflows, model, engine, limits
        self._inside: set[Waiting] = set()
        self._heeds_signals, self._ending = False, False
        self._threads = ThreadPoolExecutor(limits.most_requests, thread_name_prefix="edgequant-request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._heeds_signals:  # the server has set its own handlers by now
            self._heeds_signals = True
            call_when_told_to_end(self.end_soon, at_last_s=GRACE_S + 1)
        path = scope.get("path", "")
        if scope["type"] != "http" or (scope["method"] != "POST" and not path.startswith("/v1/")):
            await self._mlflows(scope, receive, send)
            return
        try:
            if scope["method"] == "POST":
                await self._post(scope, receive, send)
            else:
                await _respond(send, 200, self._known(scope["method"], path))
        except UnansweredError as refusal:
            await _respond(send, refusal.status, refusal.serialize_as_json(), refusal.headers)

    def end_soon(self) -> None:
        """Take no more requests; those that are there have a few seconds left."""
        self._ending = True
        for waiting in list(self._inside):
            waiting.end_in(GRACE_S, server_ends())

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._ending:
            raise server_ends()
        if len(self._inside) >= self._limits.most_requests:
            raise crowded(self._limits.most_requests)
        waiting = Waiting(seconds_of_a_request())
        self._inside.add(waiting)
        try:
            body = await read_body(scope, receive, self._limits.body_megabytes, waiting)
            watcher = asyncio.create_task(_watch(receive, waiting))
            try:
                await self._answer(scope, body, waiting, send)
            finally:
                watcher.cancel()
        finally:
            self._inside.discard(waiting)

    async def _answer(self, scope: Scope, body: bytes, waiting: Waiting, send: Send) -> None:
        path = scope["path"]
        if path not in PATHS and path != INVOCATIONS:
            raise _unknown_url("POST", path)
        is_json = header(scope, "content-type").partition(";")[0].strip().lower() in ("", "application/json")
        sent = await self._while(waiting, json_of, body) if is_json or path in PATHS else None
        ours = isinstance(sent, Mapping) and not {"messages", "prompt"}.isdisjoint(sent)
        if path in PATHS and not (isinstance(sent, Mapping) and PATHS[path] in sent):
            raise BadRequestError(f"{PATHS[path]} must be in the body, a JSON object; add it", PATHS[path])
        if not ours:
            await ask_mlflow(self._mlflows, scope, body, waiting, send)
            return
        request = await self._while(waiting, parse, sent, self._limits)
        work = partial(self._work, request, waiting)
        if request.stream:
            await stream(self._threads, work, request, self._model, waiting, send)
        else:
            answers = await self._while(waiting, work)
            await _respond(send, 200, json.dumps(to_openai(request, answers, self._model)))

    def _work(self, request: Request, waiting: Waiting, say: Any = None) -> Any:
        with refusing(_log, "the messages or the prompt are nested too deeply"):
            return self._engine.answer(request, waiting, say)

    async def _while(self, waiting: Waiting, work: Callable[..., Any], *arguments: Any) -> Any:
        """What a thread computes, while somebody waits for it; a thread that is left alone stops by itself."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        while not (await asyncio.wait({future}, timeout=LOOK_S))[0]:
            if (why := waiting.over()) is not None:
                future.add_done_callback(lambda done: done.cancelled() or done.exception())  # it is heard
                raise why
        return future.result()

    def _known(self, method: str, path: str) -> str:
        card = {"id": self._model, "object": "model", "created": 0, "owned_by": "edgequant"}
        if method in ("GET", "HEAD") and path == MODELS:
            return json.dumps({"object": "list", "data": [card]})
        if method in ("GET", "HEAD") and path == f"{MODELS}/{self._model}":
            return json.dumps(card)
        raise _unknown_url(method, path)


async def _watch(receive: Receive, waiting: Waiting) -> None:
    with suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
        waiting.leave()


async def _respond(send: Send, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
    content = body.encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


def _unknown_url(method: str, path: str) -> BadRequestError:
    paths = ", ".join((INVOCATIONS, *PATHS, MODELS))
    wrong_method = path in (INVOCATIONS, *PATHS, MODELS)
    status = 405 if wrong_method else 404
    return BadRequestError(f"unknown request URL: {method} {path[:80]}; there are: {paths}", status=status)
