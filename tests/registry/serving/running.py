"""An app behind uvicorn on the loopback interface, as `mlflow models serve` runs it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

JSON = {"Content-Type": "application/json"}


@contextmanager
def running(app: Any) -> Iterator[int]:
    """The port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(10)


def post(port: int, path: str, sent: Any, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
    """Status, body (of JSON, where it is) and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        connection.request("POST", path, body, JSON if headers is None else headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if text.startswith(("{", "[")) else text, answer.headers
    finally:
        connection.close()


def begin(port: int, path: str, sent: Any, *, length: int | None = None) -> socket.socket:
    """A request whose answer nobody reads yet."""
    body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def until(true: Any, seconds: float = 5) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())
