"""A password in a store's address is shown nowhere; what a server refuses is told with what to do."""

from __future__ import annotations

import os

import mlflow
import pytest

from edgequant.tracking import refusal, ui_command
from edgequant.tracking.addresses import move_credentials, without_password
from edgequant.tracking.pages import run_url


@pytest.fixture
def address(monkeypatch, store):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "earlier")
    return lambda uri: monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


def test_a_servers_user_and_password_become_mlflows_own_variables(address):
    address("http://ana:p%40ss%2Fword@host:5000/mlflow")
    assert run_url("1", "abc") == "http://host:5000/mlflow/#/experiments/1/runs/abc?workflowType=machine_learning"
    assert mlflow.get_tracking_uri() == "http://host:5000/mlflow"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ana", "p@ss/word")


def test_an_address_without_a_user_leaves_the_variables(address):
    address("http://host:5000")
    move_credentials()
    assert mlflow.get_tracking_uri() == "http://host:5000" and os.environ["MLFLOW_TRACKING_USERNAME"] == "earlier"


def test_a_databases_password_is_in_no_command(address):
    address("postgresql+pg8000://me:p@ss@host/db")
    assert ui_command() == 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
    assert without_password("at postgresql://me:p@ss@host/db") == "at postgresql://me:***@host/db"
    assert without_password("see http://host:5000/a and me@host") == "see http://host:5000/a and me@host"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://host/db?user=me&password=p@ss&sslmode=require", "postgresql://host/db?user=me&password=***&sslmode=require"),
        ("mssql://host/db?odbc_connect=DRIVER=x;UID=me;PWD=p4ss;Port=1", "mssql://host/db?odbc_connect=DRIVER=x;UID=me;PWD=***;Port=1"),
        ("https://host/a?access_token=abc", "https://host/a?access_token=***"),
        ("https://a:b@x/1 and ftp://c:d@y/2", "https://a:***@x/1 and ftp://c:***@y/2"),
        ("max_new_tokens=5, pad_token=<pad>", "max_new_tokens=5, pad_token=<pad>"),
    ],
)  # fmt: skip
def test_a_password_in_the_query_of_an_address_is_hidden_too(given, shown):
    assert without_password(given) == shown


@pytest.mark.parametrize(
    ("text", "why", "fix"),
    [
        ("endpoint /api/2.0/mlflow/experiments/search failed with error code 401 != 200", "'earlier'", "PASSWORD"),
        ("endpoint /api/2.0/mlflow/runs/create failed with error code 403 != 200", "runs/create: 403", "EDIT"),
        ("failed with error code 403 != 200. Response body: 'Invalid Host header'", "by that name", "--allowed-hosts"),
        ("https://h/api/2.0/mlflow/runs/search failed with exception too many 503 error responses", "503", "database"),
    ],
)
def test_what_a_server_refuses_is_told_with_what_to_do(address, text, why, fix):
    found = refusal(mlflow.exceptions.MlflowException(text))
    assert found is not None and why in found[0] and fix in found[1]


def test_any_other_error_is_none_of_the_servers():
    assert refusal(mlflow.exceptions.MlflowException("experiment 401 not found")) is None
