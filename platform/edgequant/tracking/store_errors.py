"""What MLflow, its database, its server or the network raise, as one line that says what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow

from edgequant.disk.faults import KINDS, SPACE, fault, free_bytes
from edgequant.errors import UserError, first_line
from edgequant.tracking.addresses import PASSWORD, USER, local_store, without_password

ELSEWHERE = "name another store in MLFLOW_TRACKING_URI, such as sqlite:///mlflow.db or http://HOST:5000"
UNAUTHORIZED, FORBIDDEN = 401, 403
SERVER_ERRORS = (500, 502, 503, 504)


@contextmanager
def store_errors_told() -> Iterator[None]:
    """What MLflow, its database or the network raise becomes one line with the store's address.

    Raises:
        UserError: in their place.
    """
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except UserError:
        raise
    except (mlflow.exceptions.MlflowException, SQLAlchemyError, CommandError, OSError, ImportError) as error:
        raise unusable(str(mlflow.get_tracking_uri()), *_why_and_fix(error)) from error


@contextmanager
def told_alone(what: str) -> Iterator[None]:
    """What goes wrong while a run is ended by another error, as one line on stderr; `what` says what it is, with {}."""
    try:
        yield
    except Exception as error:
        if fault(error) is None:  # a disk's is what ended the run, and is told at its end
            print(what.format(first_line(error)[:200]), file=sys.stderr, flush=True)


def unusable(uri: str, why: str, fix: str = ELSEWHERE) -> UserError:
    """The error for a store that cannot be used.

    Args:
        why: what was found.
        fix: what to do.
    """
    if "out-of-date database schema" in why:
        fix = f"back it up and run `mlflow db upgrade {uri}`, install the mlflow that made it, or {ELSEWHERE}"
    elif "already exists" in why:
        fix = "a run was stopped while it was made; move the file away if it holds no runs, or " + ELSEWHERE
    elif "filesystem tracking backend" in why:
        fix = f"`mlflow migrate-filestore` moves its runs to a database; or {ELSEWHERE}"
    return UserError(f"tracking store {without_password(uri)!r} cannot be used: {why}; {without_password(fix)}")


def _why_and_fix(error: Exception) -> tuple[str, str]:
    store = local_store()
    if store is not None and (number := fault(error)) is not None:
        return f"{KINDS[number][0]} ({free_bytes(store):,} bytes free)", SPACE
    return refusal(error) or (_first_sentence(error), ELSEWHERE)


def refusal(error: BaseException) -> tuple[str, str] | None:
    """(why, what to do) where a tracking server said no, or could not do its part; None for any other error."""
    status, text = _status(error), str(error)
    if status == UNAUTHORIZED:
        return _unknown_user(), f"set {USER} and {PASSWORD} to those of an account on that server"
    if status == FORBIDDEN and "Invalid Host header" in text:
        return "it does not know itself by that name (403)", "start it with --allowed-hosts and the name in the address"
    if status == FORBIDDEN:
        fix = "ask its administrator for EDIT there, or choose an experiment of your own with --experiment"
        return f"user {_user()!r} may not do that ({_request(error)}: 403, permission denied)", fix
    stated = re.search(r'"message": "((?:[^"\\]|\\.)*)"', text)
    if status in SERVER_ERRORS or (stated and "Failed to list artifacts" in stated[1]):
        place = "artifact store" if "artifact" in text else "database"
        why = stated[1] if stated else f"{_request(error)}: {status}"
        fix = f"look at the server's log: is its {place} there, with the bucket, name and keys that it was given?"
        return f"the server failed ({why[:200]})", fix
    return None


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if response is not None and getattr(response, "status_code", None):
        return int(response.status_code)
    found = re.search(r"failed with error code (\d{3})|too many (\d{3}) error responses", str(error))
    return int(found[1] or found[2]) if found else None


def _unknown_user() -> str:
    user = _user()
    return f"it refuses user {user!r} or the password (401)" if user else "it asks for a user and a password (401)"


def _user() -> str:
    from mlflow.utils.credentials import read_mlflow_creds

    return str(read_mlflow_creds().username or "")


def _request(error: BaseException) -> str:
    """Which part of MLflow's API it was about: `runs/create`, `mlflow-artifacts`."""
    found = re.search(r"/api/\d\.\d/(?:mlflow/)?([a-z-]+(?:/[a-z-]+)?)", str(error))
    return found[1].removesuffix("/artifacts") if found else "its API"


def _first_sentence(error: Exception) -> str:
    return (first_line(error) or type(error).__name__).split(". ")[0].rstrip(".")[:200]
