"""Addresses of tracking stores, without the password that one may hold: they are printed, logged and pickled."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import mlflow

from edgequant.redaction import without_password as without_password

ADDRESS, USER, PASSWORD = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def shown_store() -> str:
    """The tracking store's address as one may show it to others, without opening the store."""
    move_credentials()
    return without_password(str(mlflow.get_tracking_uri()))


def local_store() -> Path | None:
    """The file of a store that is an SQLite database of this machine; None of any other."""
    uri = str(mlflow.get_tracking_uri())
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])) if uri.startswith("sqlite:///") else None


def move_credentials() -> None:
    """User and password of a server's address become MLflow's own two variables, which MLflow prints nowhere.

    MLflow ends every run with a link that begins with the address as it was given, password and all.
    """
    uri = str(mlflow.get_tracking_uri())
    address = _server_with_user(uri)
    if address is None:
        return
    os.environ[USER], os.environ[PASSWORD] = unquote(address.username or ""), unquote(address.password or "")
    bare = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
    if os.environ.get(ADDRESS) == uri:
        os.environ[ADDRESS] = bare
    if mlflow.get_tracking_uri() == uri:  # set by mlflow.set_tracking_uri
        mlflow.set_tracking_uri(bare)


def _server_with_user(uri: str) -> SplitResult | None:
    try:
        address = urlsplit(uri)
    except ValueError:
        return None
    return address if address.scheme in ("http", "https") and address.username else None
