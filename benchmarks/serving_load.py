"""`mlflow models serve` under load: time to the first answer, requests, errors, tokens per second, memory.

    python benchmarks/serving_load.py --model models:/edgequant-smollm2-135m@champion      # a minute, 8 clients
    python benchmarks/serving_load.py --model models:/edgequant-tiny@champion --seconds 10     # a quick look
    python benchmarks/serving_load.py --model models:/edgequant-tiny@champion --hostile 4    # some misbehave

Each client asks again as soon as it is answered: chats with a few questions in turn, or completions where the model has
no chat template. The server is one that this script starts, and ends, on the loopback interface. Memory is that of the
server's processes together (resident), after the first answer of each client, half-way and at the end. Set
MLFLOW_TRACKING_URI as for any MLflow command. Clients that misbehave send prompts of 10 MB and JSON of 100,000
brackets, and hang up on long answers, streamed and not; none of that is an error, unless the server answers with a
status from 500 on.
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
from collections import Counter
from collections.abc import Callable, Iterator
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
    misbehaved: Counter[str] = field(default_factory=Counter)  # and what they were told


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as `mlflow models serve -m` takes it")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max_tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--hostile", type=int, default=0, help="clients beside them that misbehave")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--env_manager", default="local", choices=["local", "virtualenv", "uv", "conda"])
    parser.add_argument("--log", type=Path, default=Path("serving.log"), help="what the server says")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    started = time.perf_counter()
    ended_s: list[float] = []
    with server(options, ended_s) as (process, port):
        chats, first_s = first_answer(process, port, options, started)
        counts, memory_mb = load(process, port, chats, options)
    answered = len(counts.seconds)
    rows = {
        "start to first answer (s)": f"{first_s:.1f}",
        "requests answered": answered,
        "errors": len(counts.errors),
        "tokens/s": f"{counts.tokens / options.seconds:.1f}",
        "seconds per request, median": f"{median(counts.seconds or [0]):.2f}",
        "seconds per request, longest": f"{max(counts.seconds or [0]):.2f}",
        "memory, begin, half-way and end (MB)": ", ".join(f"{each:.0f}" for each in memory_mb),
        "seconds from SIGTERM to the end": f"{ended_s[0]:.1f}",
        **{f"misbehaved: {what}": times for what, times in sorted(counts.misbehaved.items())},
    }
    asked = "chats" if chats else "completions"
    print(
        f"\n{options.model}: {options.clients} clients, {options.seconds:g} s, {asked} of {options.max_tokens} tokens"
    )
    for name, value in rows.items():
        print(f"  {name:38} {value}")
    for error in dict.fromkeys(counts.errors):
        print(f"  error: {error}")
    sys.exit(bool(counts.errors) or not answered)


@contextmanager
def server(options: argparse.Namespace, ended_s: list[float]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
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
            if process.poll() is None:
                family, told = psutil.Process(process.pid).children(recursive=True), time.perf_counter()
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)
                psutil.wait_procs(family, 30)
                ended_s.append(time.perf_counter() - told)


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
) -> tuple[Counts, list[float]]:
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

    def hostile(number: int) -> None:
        while time.perf_counter() < end:
            for what, misbehave in MISBEHAVIOUR.items():
                told = misbehave(port)
                with lock:
                    counts.misbehaved[f"{what}: {told}"] += 1
                    if told >= 500:
                        counts.errors.append(f"{told} for {what}")

    clients = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
    clients += [threading.Thread(target=hostile, args=(number,)) for number in range(options.hostile)]
    for each in clients:
        each.start()
    warm.wait()
    memory_mb = [resident_mb(process.pid)]
    time.sleep(max(0, (end - time.perf_counter()) / 2))
    memory_mb.append(resident_mb(process.pid))
    for each in clients:
        each.join()
    return counts, [*memory_mb, resident_mb(process.pid)]


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


def status_of(port: int, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def hang_up(port: int, *, stream: bool) -> int:
    """0: no status was waited for."""
    body = json.dumps({"prompt": QUESTIONS, "max_tokens": 1000, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.3)
    return 0


MISBEHAVIOUR: dict[str, Callable[[int], int]] = {
    "10 MB": lambda port: status_of(port, b'{"prompt": "' + b"water " * 1_666_667 + b'"}'),
    "3 MB": lambda port: status_of(port, b'{"prompt": "' + b"water " * 500_000 + b'"}'),
    "100,000 brackets": lambda port: status_of(port, b"[" * 100_000),
    "hangs up": lambda port: hang_up(port, stream=False),
    "hangs up on a stream": lambda port: hang_up(port, stream=True),
}


def resident_mb(pid: int) -> float:
    root = psutil.Process(pid)
    return float(sum(each.memory_info().rss for each in [root, *root.children(recursive=True)])) / MB


if __name__ == "__main__":
    main()
