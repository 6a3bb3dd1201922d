"""`mlflow models serve` under load: time to the first answer, requests, errors, tokens per second, memory.

    python benchmarks/serving_load.py --model models:/edgequant-smollm2-135m@champion      # a minute, 8 clients
    python benchmarks/serving_load.py --model models:/edgequant-tiny@champion --seconds 10     # a quick look

Each client asks again as soon as it is answered: chats with a few questions in turn, or completions where the model has
no chat template. The server is one that this script starts, and ends, on the loopback interface. Memory is that of the
server's processes together (resident), after the first answer of each client and at the end. Set MLFLOW_TRACKING_URI as
for any MLflow command.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

QUESTIONS = (
    "How is flood water made safe to drink?",
    "Who needs help first in an evacuation?",
    "What belongs in a first-aid kit?",
    "How is a latrine sited in a camp?",
)
MB = 1e6
START_S = 600  # a fresh environment is installed before the server starts


@dataclass
class Counts:
    """What all clients have seen."""

    seconds: list[float] = field(default_factory=list)  # of each answered request
    tokens: int = 0
    errors: list[str] = field(default_factory=list)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as `mlflow models serve -m` takes it")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max_tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--env_manager", default="local", choices=["local", "virtualenv", "uv", "conda"])
    parser.add_argument("--log", type=Path, default=Path("serving.log"), help="what the server says")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    started = time.perf_counter()
    with server(options) as (process, port):
        chats, first_s = first_answer(process, port, options, started)
        counts, begin_mb, end_mb = load(process, port, chats, options)
    answered = len(counts.seconds)
    rows = {
        "start to first answer (s)": f"{first_s:.1f}",
        "requests answered": answered,
        "errors": len(counts.errors),
        "tokens/s": f"{counts.tokens / options.seconds:.1f}",
        "seconds per request, median": f"{median(counts.seconds or [0]):.2f}",
        "seconds per request, longest": f"{max(counts.seconds or [0]):.2f}",
        "memory, begin (MB)": f"{begin_mb:.0f}",
        "memory, end (MB)": f"{end_mb:.0f}",
    }
    asked = "chats" if chats else "completions"
    print(
        f"\n{options.model}: {options.clients} clients, {options.seconds:g} s, {asked} of {options.max_tokens} tokens"
    )
    for name, value in rows.items():
        print(f"  {name:30} {value}")
    for error in dict.fromkeys(counts.errors):
        print(f"  error: {error}")
    sys.exit(bool(counts.errors) or not answered)


@contextmanager
def server(options: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", options.model, "--port", str(port)]
    command += ["--workers", str(options.workers), "--env-manager", options.env_manager]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])  # uvicorn's
    with options.log.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"PATH": path}, start_new_session=True
        )
        try:
            yield process, port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def first_answer(
    process: subprocess.Popen[bytes], port: int, options: argparse.Namespace, started: float
) -> tuple[bool, float]:
    """Whether the model chats, and the seconds until its first answer."""
    while True:
        if process.poll() is not None or time.perf_counter() - started > START_S:
            sys.exit(f"the server did not start; see {options.log}")
        try:
            status, said = ask(port, request(True, QUESTIONS[0], 1))
        except OSError:
            time.sleep(0.1)
            continue
        if status == 200:
            return True, time.perf_counter() - started
        status, said = ask(port, request(False, QUESTIONS[0], 1))
        if status != 200:
            sys.exit(f"the server answers {status}: {said}; see {options.log}")
        return False, time.perf_counter() - started


def load(
    process: subprocess.Popen[bytes], port: int, chats: bool, options: argparse.Namespace
) -> tuple[Counts, float, float]:
    counts, lock, end = Counts(), threading.Lock(), time.perf_counter() + options.seconds
    warm = threading.Barrier(options.clients + 1)

    def client(number: int) -> None:
        at = number
        while at == number or time.perf_counter() < end:
            began = time.perf_counter()
            try:
                status, said = ask(port, request(chats, QUESTIONS[at % len(QUESTIONS)], options.max_tokens))
            except OSError as error:
                status, said = 0, repr(error)
            with lock:
                if status == 200:
                    counts.seconds.append(time.perf_counter() - began)
                    counts.tokens += said["usage"]["completion_tokens"]
                else:
                    counts.errors.append(f"{status}: {str(said)[:200]}")
            if at == number:
                warm.wait()
            at += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
    for each in clients:
        each.start()
    warm.wait()
    begin = resident_mb(process.pid)
    for each in clients:
        each.join()
    return counts, begin, resident_mb(process.pid)


def request(chats: bool, question: str, max_tokens: int) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": question}]} if chats else {"prompt": question}
    return {**asked, "max_tokens": max_tokens}


def ask(port: int, sent: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/invocations", json.dumps(sent), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if text.startswith("{") else text
    finally:
        connection.close()


def resident_mb(pid: int) -> float:
    root = psutil.Process(pid)
    return float(sum(each.memory_info().rss for each in [root, *root.children(recursive=True)])) / MB


if __name__ == "__main__":
    main()
