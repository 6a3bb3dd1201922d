"""Passwords, keys and tokens that a user's shell holds are in no store, no artifact, no file and no line of output."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from edgequant import tracking
from edgequant.__main__ import main

CANARY = "canary7f3"
SECRETS = {
    "HF_TOKEN": f"hf_{CANARY}",
    "AWS_ACCESS_KEY_ID": f"{CANARY}id",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}aws",
    "AWS_SESSION_TOKEN": f"{CANARY}session",
    "MLFLOW_S3_ENDPOINT_URL": f"http://me:{CANARY}s3@127.0.0.1:9",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": f"{CANARY}flask",
}
QUICK = (
    "--evaluation.tasks", "[domain_perplexity]", "--evaluation.limit", "10", "--training.steps", "2",
    "--training.batch_size", "2", "--training.sequence_length", "64", "--training.learning_rate", "0.001",
)  # fmt: skip
POLICY = "gates: [{metric: size/checkpoint_gb, max: 1}]\n"


def answers(address: str) -> bool:
    try:
        return bool(urlopen(f"{address}/health", timeout=5).status == 200)
    except OSError:
        return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Host and port of an MLflow server that believes everyone, and the folder of all that it keeps."""
    folder = tmp_path / "server"
    folder.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///server.db", "--workers", "1",
        "--artifacts-destination", str(folder / "artifacts"), "--port", place.rpartition(":")[2],
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 90
        while not answers(f"http://{place}"):
            assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.3)
        yield place, folder
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def test_what_a_library_repeats_of_a_secret_reaches_neither_store_nor_files_nor_screen(
    store, tmp_path, monkeypatch, capfd
):
    for name, value in {
        **SECRETS,
        "MLFLOW_TRACKING_PASSWORD": f"{CANARY}pw",
        "MLFLOW_TRACKING_TOKEN": f"{CANARY}t",
    }.items():
        monkeypatch.setenv(name, value)
    secrets = " ".join(value for name, value in os.environ.items() if CANARY in value)

    def working(**_: object) -> None:
        config = {"model": "tiny", "teacher": f"postgresql://me:{CANARY}uri@host/db", "note": secrets}
        with tracking.workflow_run("qat", config):
            tracking.log_params({"given": secrets})
            tracking.set_tags({"told": secrets})
            tracking.log_text(secrets, "notes.txt")
            tracking.describe_run(secrets)
            raise OSError(f"403 for {secrets}")

    monkeypatch.setattr("edgequant.__main__.workflow", lambda _: working)
    monkeypatch.setattr("edgequant.__main__.parse", lambda *_: {})
    assert secrets.count(CANARY) == 8 and main(["qat"]) == 2
    said = "".join(capfd.readouterr())
    assert "403 for" in said and CANARY not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "config.yaml", "traceback.txt", "notes.txt"} <= {path.name for path in files}
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


@pytest.mark.long
def test_what_a_users_shell_knows_stays_there(server, edgequant, tmp_path):
    place, kept = server
    shell = SECRETS | {"MLFLOW_TRACKING_URI": f"http://ana:{CANARY}uri@{place}"}
    (tmp_path / "policy.yaml").write_text(POLICY)
    promote = ("promote", "--model", "tiny", "--policy", "policy.yaml")
    commands = [
        ("qat", "--model", "tiny", *QUICK), promote, ("promote", "--history", "true"), ("report",),
        ("tune", "--model", "tiny", *QUICK, "--trials", "1"), ("doctor", "--offline", "true"),
        ("promote", "--model", "nope"),
        ("push", "--repo", "me/x", "--model", "models:/nope/1"), ("evaluate", "--model", "runs:/nope/x"),
    ]  # fmt: skip
    said = {}
    for command in commands:
        done = edgequant(*command, timeout=300, **shell)
        said[" ".join(command[:3])] = (done.returncode, done.stdout + done.stderr)
    assert {name: status for name, (status, _) in said.items()} == {
        "qat --model tiny": 0, "tune --model tiny": 0, "promote --model tiny": 0, "promote --history true": 0,
        "report": 0,
        "doctor --offline true": 0, "promote --model nope": 2, "push --repo me/x": 2,
        "evaluate --model runs:/nope/x": 2,
    }, json.dumps(said, indent=1)  # fmt: skip
    assert [name for name, (_, text) in said.items() if CANARY in text] == []
    assert place in said["qat --model tiny"][1]
    assert [name for name, (_, text) in said.items() if "View run" in text] == []  # MLflow's, which open GenAI's pages
    files = [path for folder in (tmp_path, kept) for path in folder.rglob("*") if path.is_file()]
    assert (kept / "server.db").is_file() and [path for path in files if CANARY.encode() in path.read_bytes()] == []
