"""`make test-server` names a Python with the server's packages; without, nothing here is collected."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from services import SETTINGS, Mlflow, edgequant, end, postgres, s3

PYTHON, BINARIES = os.environ.get("EDGEQUANT_SERVER_PYTHON"), os.environ.get("EDGEQUANT_POSTGRES")
collect_ignore = [] if PYTHON and BINARIES else ["test_server.py", "test_server_says_no.py"]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, int]]:
    """A folder, and the ports of the database and of S3."""
    folder = tmp_path_factory.mktemp("server")
    with postgres(Path(str(BINARIES))) as database, s3(Path(str(PYTHON)), folder) as store:
        yield folder, database, store


@pytest.fixture(scope="session")
def server(places: tuple[Path, int, int]) -> Iterator[Mlflow]:
    """MLflow with its bucket; the account `trainer` may read, and change what is its own."""
    running = Mlflow(Path(str(PYTHON)), *places)
    running.make_bucket()
    running.start()
    try:
        ask(running, "POST", "2.0/mlflow/users/create", username="trainer", password="trainer0password")
        yield running
    finally:
        end(running.process)


def ask(server: Mlflow, method: str, endpoint: str, **body: str) -> dict:
    """An answer of MLflow's API to its administrator."""
    told = f"{SETTINGS['MLFLOW_ADMIN_USERNAME']}:{SETTINGS['MLFLOW_ADMIN_PASSWORD']}".encode()
    headers = {"Authorization": f"Basic {base64.b64encode(told).decode()}", "Content-Type": "application/json"}
    data = json.dumps(body).encode()
    with urlopen(Request(f"{server.uri}/api/{endpoint}", data, headers, method=method)) as answer:
        return json.loads(answer.read() or b"{}")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of the clients."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "policy.yaml").write_text("name: any\ngates: [{metric: size/reduction_vs_fp16, min: 50}]\n")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def admin(server: Mlflow, work: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    return edgequant(work, server.uri, SETTINGS["MLFLOW_ADMIN_USERNAME"], SETTINGS["MLFLOW_ADMIN_PASSWORD"])


@pytest.fixture(scope="session")
def trainer(server: Mlflow, work: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    return edgequant(work, server.uri, "trainer", "trainer0password")
