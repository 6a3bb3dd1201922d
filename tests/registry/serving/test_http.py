"""What comes over the wire: limits, streams, clients that go, servers that end; nothing of it is the server's fault."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import begin, post, running, until

from edgequant_registry.serving.answers import Answer
from edgequant_registry.serving.http import app as http_app
from edgequant_registry.serving.http.app import ServingApp
from edgequant_registry.serving.limits import Limits
from edgequant_registry.serving.torch_engine import TorchEngine
from edgequant_registry.serving.waiting import TIMEOUT

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
SAID = ["Boil", " the", " wåter", "."]


class SlowEngine:
    """Says four pieces, the last ones only when it is let; counts what it is asked and the steps that it takes."""

    name = "slow"

    def __init__(self) -> None:
        self.go, self.asked, self.steps, self.fails = threading.Event(), 0, 0, False

    def answer(self, request: Any, waiting: Any, say: Any = None) -> list[Answer]:
        self.asked += 1
        for at, piece in enumerate(SAID):
            if say is not None:
                say(0, piece)
            while at == 1 and not self.go.is_set():
                self.steps += 1
                if (why := waiting.over()) is not None:
                    raise why
                time.sleep(0.005)
            if at == 1 and self.fails:
                raise RuntimeError("secret: line 17 of /home/me/model.py")
        return [Answer("".join(SAID), "stop", 3, 4)]


async def mlflows(scope: Any, receive: Any, send: Any) -> None:
    """In MLflow's place: it echoes, or breaks on what it does not know."""
    body = (await receive())["body"]
    if b"broken" in body:
        raise TypeError("unhashable type: 'list'")
    status = 400 if b"stack" in body else 200
    said = {"error_code": "BAD_REQUEST", "message": "no\nform", "stack_trace": "Traceback ..."} if status == 400 else {}
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SlowEngine, ServingApp, int]]:
    monkeypatch.setattr(http_app, "GRACE_S", 0.2)
    engine = SlowEngine()
    app = ServingApp(mlflows, model="slow/1", engine=engine, limits=Limits(most_requests=2, body_megabytes=0.5))
    with running(app) as port:
        yield engine, app, port
        engine.go.set()


@pytest.fixture(scope="module")
def port(checkpoint: Path) -> Iterator[int]:
    """Of `tiny` in torch."""
    app = ServingApp(mlflows, model="tiny/1", engine=TorchEngine(checkpoint), limits=Limits())
    with running(app) as port:
        yield port


def events(text: str) -> list[Any]:
    lines = text.split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
    return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"a":' * 100_000, 400, "nested too deeply"),
        (b'{"prompt": "a"', 400, "the body must be a JSON object, got Expecting"),
        (b"", 400, "the body must be a JSON object, got Expecting value"),
        (b'{"prompt": "\xe9"}', 400, "can't decode byte"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400, "must be a JSON object, got Exceeds the limit"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "temperature must be a number from 0 to 2, got nan"),
        (b'{"prompt": "a", "temperature": 1e999}', 400, "temperature must be a number from 0 to 2, got inf"),
        (b'{"prompt": "a", "\\ud800": 1}', 400, "\\ud800 is unknown"),
        ({"prompt": "a", "x" * 100_000: 1}, 400, "is unknown; there are: messages"),
        ({"prompt": "a" * 10_000_000}, 413, "the body must be at most 4 MB; send less at a time"),
        ({"prompt": "water " * 600_000}, 400, "tokens, and with an answer it must fit a context of 2048"),
        ({"prompt": ["a"] * 65}, 400, "prompt must be at most 64 prompts, got 65"),
        ([{"prompt": "a"}], 400, "prompt must be in the body, a JSON object; add it"),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_body_that_is_no_request_gets_a_line_that_says_so(port: int, sent: Any, status: int, said: str) -> None:
    found, body, _ = post(port, COMPLETIONS, sent)
    assert found == status and said in body["error"]["message"]
    assert body["message"] == body["error"]["message"] and "\n" not in body["message"] and len(body["message"]) <= 300
    assert post(port, COMPLETIONS, {"prompt": "a", "max_tokens": 1})[0] == 200


def test_a_stream_says_what_the_whole_answer_would(port: int) -> None:
    asked = {"prompt": ["Boil", "Wait"], "max_tokens": 20, "temperature": 1.2, "seed": 3}
    whole = post(port, COMPLETIONS, asked)[1]
    status, text, headers = post(port, COMPLETIONS, asked | {"stream": True, "stream_options": {"include_usage": True}})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(text)
    assert done == "data: [DONE]" and last["choices"] == [] and last["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in chunks} == {last["id"]} and {chunk["usage"] for chunk in chunks} == {None}
    for expected in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == expected["index"]]
        assert "".join(part["text"] for part in parts) == expected["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [expected["finish_reason"]]


def test_a_stream_of_a_chat_begins_with_whose_words_follow(slow: Any) -> None:
    engine, _, port = slow
    engine.go.set()
    asked = {"messages": [{"role": "user", "content": "How?"}], "stream": True}
    first, *chunks, last, done = events(post(port, CHATS, asked)[1])
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"content": piece} for piece in SAID]
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert "usage" not in last and done == "data: [DONE]"


def test_what_cannot_be_answered_is_refused_before_a_stream_begins(port: int) -> None:
    status, body, _ = post(port, COMPLETIONS, {"prompt": "a" * 3000, "stream": True})
    assert status == 400 and "must fit a context of 2048" in body["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_models_shows_nothing_of_the_server(slow: Any, stream: bool) -> None:
    engine, _, port = slow
    engine.fails = True
    engine.go.set()
    status, body, _ = post(port, COMPLETIONS, {"prompt": "a", "stream": stream})
    if stream:  # it had begun
        *_, body = events(body)
    assert (
        status == (200 if stream else 500) and "secret" not in json.dumps(body) and "model.py" not in json.dumps(body)
    )
    assert "an error of the server's; see its log" in body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_work_stops_when_the_client_goes(slow: Any, stream: bool) -> None:
    engine, app, port = slow
    connection = begin(port, COMPLETIONS, {"prompt": "a", "stream": stream})
    assert until(lambda: engine.steps > 3)
    connection.close()
    assert until(lambda: not app._inside)
    steps = engine.steps
    time.sleep(0.05)
    assert engine.steps == steps


def test_who_comes_when_the_server_is_full_is_told_when_to_try_again(slow: Any) -> None:
    engine, _, port = slow
    connections = [begin(port, COMPLETIONS, {"prompt": "a"}) for _ in "ab"]
    assert until(lambda: engine.asked == 2)
    status, body, headers = post(port, COMPLETIONS, {"prompt": "a"})
    assert status == 503 and headers["retry-after"] == "2" and "2 requests are being answered" in body["message"]
    engine.go.set()
    for connection in connections:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
    assert post(port, COMPLETIONS, {"prompt": "a"})[0] == 200


def test_a_server_that_is_told_to_end_takes_no_more_and_gives_the_others_a_moment(slow: Any) -> None:
    engine, app, port = slow
    connection = begin(port, COMPLETIONS, {"prompt": "a"})
    assert until(lambda: engine.asked == 1)
    app.end_soon()
    assert post(port, COMPLETIONS, {"prompt": "a"})[:2][0] == 503 and engine.asked == 1
    began = time.monotonic()
    assert connection.recv(100).startswith(b"HTTP/1.1 503") and 0.05 < time.monotonic() - began < 2
    connection.close()


def test_a_request_has_the_servers_time_and_a_slow_body_too(slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, app, port = slow
    monkeypatch.setenv(TIMEOUT, "0.2")
    status, body, headers = post(port, COMPLETIONS, {"prompt": "a"})
    assert status == 504 and headers["x-should-retry"] == "false"
    assert "not answered within 0.2 s (--timeout of the server)" in body["message"]
    connection = begin(port, COMPLETIONS, b'{"prompt":', length=1000)
    assert connection.recv(100).startswith(b"HTTP/1.1 504") and engine.asked == 1
    connection.close()
    assert not app._inside


def test_a_body_of_gigabytes_is_neither_kept_nor_read_to_its_end(slow: Any) -> None:
    _, app, port = slow
    connection = begin(port, COMPLETIONS, b"x" * 1_000_000, length=10**12)
    assert until(lambda: len(app._inside) == 1)
    connection.close()
    assert until(lambda: not app._inside)
    connection = socket.create_connection(("127.0.0.1", port))  # of a client that asks before it sends
    head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 99999999"
    connection.sendall(head + b"\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 413")
    connection.close()


@pytest.mark.parametrize(
    ("path", "sent", "headers", "status", "said"),
    [
        ("/invocations", {"inputs": ["stack"]}, None, 400, "no form"),
        ("/invocations", {"inputs": ["broken"]}, None, 400, "of none of MLflow's forms: TypeError: unhashable"),
        ("/invocations", b"[" * 100_000, None, 400, "nested too deeply"),
        ("/invocations", b"{}" * 300_000, {"Content-Type": "text/csv"}, 413, "the body must be at most 0.5 MB"),
        ("/v1/embeddings", {}, None, 404, "unknown request URL: POST /v1/embeddings; there are: /invocations"),
        ("/v1/models", {}, None, 405, "unknown request URL: POST /v1/models"),
        ("/anything", {}, None, 404, "unknown request URL: POST /anything"),
    ],
)  # fmt: skip
def test_an_error_of_mlflows_is_said_in_one_line_as_well(
    slow: Any, path: str, sent: Any, headers: Any, status: int, said: str
) -> None:
    found, body, _ = post(slow[2], path, sent, headers)
    assert found == status and said in body["message"] and body["message"] == body["error"]["message"]
    assert "stack_trace" not in body


def test_limits_that_nothing_passes_are_refused_and_those_of_mlmodel_count() -> None:
    from edgequant.errors import UserError
    from edgequant_registry.serving.limits import limits_of

    assert limits_of({"model": "a/1", "most_prompts": 3}) == Limits(most_prompts=3)
    for wrong in ({"most_requests": 0}, {"body_megabytes": "4"}, {"most_prompts": 1.5}):
        with pytest.raises(UserError, match=rf"serving\.{next(iter(wrong))} must be"):
            limits_of(wrong)
