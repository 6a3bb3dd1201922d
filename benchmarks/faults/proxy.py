"""A proxy between a command and its tracking server that does as a file says: python proxy.py PORT SERVER_PORT FILE.

The file holds one of: pass; away (connections are refused after they were accepted); 503; hang (nothing is answered).
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from pathlib import Path

PIECE = 65536
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def serve(port: int, server: int, told: Path) -> None:
    """Until the process is ended."""
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, server, told), daemon=True).start()


def _answer(connection: socket.socket, server: int, told: Path) -> None:
    with connection, contextlib.suppress(OSError):
        mode = told.read_text()
        if mode == "503":
            connection.recv(PIECE)
            connection.sendall(UNAVAILABLE)
        while mode == "hang" and told.read_text() == mode:
            time.sleep(0.2)
        if mode == "pass":
            with socket.create_connection(("127.0.0.1", server)) as there:
                back = threading.Thread(target=_pass_on, args=(there, connection, told), daemon=True)
                back.start()
                _pass_on(connection, there, told)
                back.join()


def _pass_on(source: socket.socket, target: socket.socket, told: Path) -> None:
    """Until the connection ends, or the file says otherwise."""
    source.settimeout(0.2)
    with contextlib.suppress(OSError):
        while told.read_text() == "pass":
            try:
                piece = source.recv(PIECE)
            except TimeoutError:
                continue
            if not piece:
                break
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
