"""PostgreSQL of Debian's package, an S3 server of PyPI and MLflow as deploy/compose.yaml starts it, on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "POSTGRES_PASSWORD": "postgres0secret",
    "S3_ACCESS_KEY": "s3access0key",
    "S3_SECRET_KEY": "s3secret0key",
    "MLFLOW_ADMIN_USERNAME": "admin",
    "MLFLOW_ADMIN_PASSWORD": "admin0password",
    "MLFLOW_SECRET_KEY": "flask0secret",
    "MLFLOW_ALLOWED_HOSTS": "mlflow.example.org",
    "MLFLOW_LISTEN": "127.0.0.1",
}
SECRETS = [SETTINGS[name] for name in SETTINGS if name.endswith(("PASSWORD", "KEY"))]


def compose() -> dict[str, Any]:
    """deploy/compose.yaml with `${NAME}` and `${NAME:?...}` replaced, as `docker compose config` would."""
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", lambda found: SETTINGS[found[1]], text))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} within {seconds} s"
        time.sleep(0.2)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """The process and what it started, by its own session."""
    if process.poll() is None:
        os.killpg(process.pid, number)
        process.wait(timeout=30)


@contextmanager
def postgres(binaries: Path) -> Iterator[int]:
    """The port of a new PostgreSQL with the database and the account of compose.yaml; the server refuses to be root."""
    folder = Path(tempfile.mkdtemp(prefix="edgequant-pg-", dir="/tmp"))
    account: dict[str, Any] = {"user": "postgres", "cwd": folder} if os.getuid() == 0 else {"cwd": folder}
    port = free_port()
    (folder / "password").write_text(SETTINGS["POSTGRES_PASSWORD"])
    if account.get("user"):
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")
    environment = os.environ | {"PGPASSWORD": SETTINGS["POSTGRES_PASSWORD"]}
    quiet = {"stdout": subprocess.DEVNULL, "check": True, **account}
    initial = ["-U", "mlflow", "--auth=scram-sha-256", "--pwfile", folder / "password", "-D", folder / "data"]
    subprocess.run([binaries / "initdb", *initial], **quiet)
    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [binaries / "pg_ctl", "-D", folder / "data", "-w"]
    subprocess.run([*control, "-o", settings, "-l", folder / "log", "start"], **quiet)
    try:
        created = [binaries / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
        subprocess.run(created, env=environment, check=True)
        yield port
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3(python: Path, folder: Path) -> Iterator[int]:
    """The port of an S3 server that keeps everything in memory."""
    port = free_port()
    command = [python.with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait(lambda: accepts(port), 60, "the S3 server answers")
        yield port
    finally:
        end(process)


class Mlflow:
    """The service `mlflow` of compose.yaml, which can be killed and started again at the same address.

    Attributes:
        changed: environment that differs from compose.yaml's.
    """

    def __init__(self, python: Path, folder: Path, database: int, store: int, **changed: str) -> None:
        self.python, self.folder, self.port, self.changed = python, folder, free_port(), changed
        self.places = {"@postgres:5432": f"@127.0.0.1:{database}", "http://s3:8333": f"http://127.0.0.1:{store}"}
        self.log = folder / f"mlflow-{self.port}.log"

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def here(self, text: str) -> str:
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        given = compose()["services"][service]["environment"]
        return os.environ | {key: self.here(str(value)) for key, value in given.items()} | self.changed

    def make_bucket(self) -> None:
        _, *program = compose()["services"]["bucket"]["command"]
        subprocess.run([self.python, *program], env=self.environment("bucket"), check=True)

    def start(self) -> None:
        configured = self.folder / "auth.ini"
        configured.write_text(self.here(compose()["configs"]["auth"]["content"]))
        _, *arguments = compose()["services"]["mlflow"]["command"]
        named = {"--port": str(self.port), "--host": "127.0.0.1", "--workers": "1"}
        for option, value in named.items():
            arguments[arguments.index(option) + 1] = value
        environment = self.environment("mlflow") | {"MLFLOW_AUTH_CONFIG_PATH": str(configured)}
        environment["MLFLOW_SERVER_ALLOWED_HOSTS"] += f",127.0.0.1:{self.port}"
        command = [self.python, "-m", "mlflow", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        wait(self.is_healthy, 90, "the MLflow server answers")

    def is_healthy(self) -> bool:
        try:
            return bool(urlopen(f"{self.uri}/health", timeout=5).status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        end(self.process, signal.SIGKILL)


def edgequant(folder: Path, uri: str, user: str, password: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line as an account of the server."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("platform", "tune", "registry"))
    account = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}

    def run(*arguments: str, timeout: float = 400, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgequant", *arguments]
        environment = os.environ | {"PYTHONPATH": paths} | account | changed
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)

    return run
