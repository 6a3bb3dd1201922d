"""What a server refuses, or cannot do, is one line, before the work and with nothing begun."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from conftest import PYTHON, ask
from services import SETTINGS, Mlflow, edgequant, end

pytestmark = pytest.mark.timeout(600)  # beside other work on the same cores

PTQ = (
    *("ptq", "--model", "tiny", "--scheme", "w4-g32", "--method", "rtn"),
    *("--evaluation.limit", "4", "--evaluation.tasks", "[domain_perplexity]"),
)


def runs(server: Mlflow) -> int:
    found = ask(server, "POST", "2.0/mlflow/experiments/search", max_results="100")["experiments"]
    ids = [entry["experiment_id"] for entry in found]
    return len(ask(server, "POST", "2.0/mlflow/runs/search", experiment_ids=ids).get("runs", ()))  # type: ignore[arg-type]


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("edgequant ")]
    assert len(told) == 1 and all(part in told[0] for part in parts), done.stderr


@pytest.fixture(scope="module")
def registered(admin) -> None:
    assert admin(*PTQ, "--register", "true").returncode == 0


def test_wrong_and_missing_passwords(server, admin, registered):
    before = runs(server)
    refused(admin(*PTQ, MLFLOW_TRACKING_PASSWORD="wrong"), "refuses user 'admin' or the password (401)")
    nobody = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    refused(admin(*PTQ, **nobody), "asks for a user and a password", "MLFLOW_TRACKING_USERNAME")
    inside = server.uri.replace("://", "://admin:not0this@")
    done = admin(*PTQ, MLFLOW_TRACKING_URI=inside)
    refused(done, "(401)")
    assert "not0this" not in done.stdout + done.stderr and runs(server) == before


def test_an_account_without_permission(server, trainer, registered):
    before = runs(server)
    refused(trainer(*PTQ), "user 'trainer' may not do that (runs/create: 403", "EDIT", "--experiment")
    may_not = "user 'trainer' may not change the registered model 'edgequant-tiny'"
    refused(trainer(*PTQ, "--register", "true", "--experiment", "own"), may_not, "--register false")
    promote = ("promote", "--model", "tiny", "--policy", "policy.yaml", "--experiment", "own")
    refused(trainer(*promote), may_not, "permission is READ")
    assert runs(server) == before
    assert trainer(*PTQ, "--experiment", "own").returncode == 0


def test_a_bucket_that_is_not_there(server, places, work):
    """Told at once: MLflow's own client would go on asking for four minutes, and again for the traceback."""
    other = Mlflow(Path(str(PYTHON)), *places, MLFLOW_ARTIFACTS_DESTINATION="s3://nowhere/artifacts")
    other.start()
    try:
        client = edgequant(work, other.uri, SETTINGS["MLFLOW_ADMIN_USERNAME"], SETTINGS["MLFLOW_ADMIN_PASSWORD"])
        before, begun = runs(server), time.monotonic()
        refused(client(*PTQ), "artifacts at 'mlflow-artifacts:/", "bucket does not exist", "server's log")
        assert time.monotonic() - begun < 60 and runs(server) == before
    finally:
        end(other.process)


def test_a_server_that_is_down_and_one_by_another_name(server, admin):
    refused(admin(*PTQ, MLFLOW_TRACKING_URI="http://127.0.0.1:9"), "does not answer", "start the server")
    refused(admin(*PTQ, MLFLOW_TRACKING_URI=server.uri.replace("127.0.0.1", "127.0.0.2")), "does not answer")
