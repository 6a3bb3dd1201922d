"""qat, tune, promote, rollback and serve through PostgreSQL, S3 and accounts; clients have no key of S3 and no driver.

One story, told in the order of the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from conftest import ask
from services import ROOT, SECRETS, accepts, end, free_port, wait

pytestmark = pytest.mark.timeout(600)  # beside other work on the same cores

SHORT = ("--model", "tiny", "--evaluation.limit", "4", "--evaluation.tasks", "[domain_perplexity]")
QAT = ("qat", *SHORT, "--training.steps", "2")
SECONDS_DOWN = 2  # and what starting takes; MLflow's client asks again after 2, 4, 8, ... seconds, for four minutes


def alias(server, name: str = "champion") -> str | None:
    found = ask(server, "GET", "2.0/mlflow/registered-models/get?name=edgequant-tiny")["registered_model"]
    return {entry["alias"]: entry["version"] for entry in found.get("aliases", ())}.get(name)


def test_qat_outlives_a_server_that_is_killed_while_it_works(admin, server):
    """And the address may hold the password: nothing prints it."""
    assert find_spec("boto3") is None and find_spec("pg8000") is None
    found: list[subprocess.CompletedProcess[str]] = []
    address = server.uri.replace("://", "://admin:admin0password@")
    client = threading.Thread(target=lambda: found.append(admin(*QAT, MLFLOW_TRACKING_URI=address)))
    client.start()
    wait(lambda: b"runs/create" in server.log.read_bytes(), 100, "the run begins")
    server.kill()
    time.sleep(SECONDS_DOWN)
    server.start()
    client.join()
    assert found[0].returncode == 0, found[0].stderr
    said = found[0].stdout + found[0].stderr
    assert f"{server.uri}/#/experiments/" in said and "admin0password" not in said
    runs = ask(server, "POST", "2.0/mlflow/runs/search", experiment_ids=["1"])["runs"]
    assert len(runs) == 4 and {run["info"]["status"] for run in runs} == {"FINISHED"}


def test_trials_of_a_search_are_runs_on_the_server_and_the_best_is_registered(admin, server):
    done = admin("tune", *SHORT, "--trials", "2", "--training.steps", "2", "--training.eval_steps", "1")
    assert done.returncode == 0, done.stderr
    runs = ask(server, "POST", "2.0/mlflow/runs/search", experiment_ids=["1"])["runs"]
    named = [run["info"]["run_name"] for run in runs]
    assert {"trial 1", "trial 2"} <= set(named) and "next" in done.stdout and "--version 2" in done.stdout


def test_promotion_and_rollback_move_the_alias(admin, server):
    for version in ("1", "2"):
        done = admin("promote", "--model", "tiny", "--version", version, "--policy", "policy.yaml")
        assert done.returncode == 0 and alias(server) == version, done.stderr
    assert admin("promote", "--model", "tiny", "--rollback", "true").returncode == 0 and alias(server) == "1"


def test_the_champion_is_served(admin, server, work):
    port = free_port()
    account = {"MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": "trainer0password"}
    environment = os.environ | account | {"MLFLOW_TRACKING_URI": server.uri}
    served = ["serve", "-m", "models:/edgequant-tiny@champion", "--env-manager", "local", "-p", str(port)]
    with (work / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", *served], cwd=work, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait(lambda: accepts(port), 90, "the model is served")
        asked = json.dumps({"inputs": ["The water is"]}).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(f"http://127.0.0.1:{port}/invocations", asked, headers), timeout=60) as answer:
            assert json.loads(answer.read())["predictions"]
    finally:
        end(process)


def test_no_password_or_key_is_on_disk_or_in_what_the_server_keeps(server, work):
    runs = json.dumps(ask(server, "POST", "2.0/mlflow/runs/search", experiment_ids=["1"]))
    assert [secret for secret in SECRETS if secret in runs] == []
    files = [path for path in work.rglob("*") if path.is_file()]
    leaking = [path for path in files for secret in SECRETS if secret.encode() in path.read_bytes()]
    assert files and leaking == []
    assert not list(Path(ROOT / "deploy").glob("server.env"))
