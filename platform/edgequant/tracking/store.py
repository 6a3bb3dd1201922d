"""The tracking store, looked at before a run begins: what is wrong with it is said in one line, at once."""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import mlflow

from edgequant.disk.leftovers import Scratch, remove_all_leftovers
from edgequant.errors import UserError, first_line
from edgequant.files import cache_dir, one_at_a_time
from edgequant.tracking import sqlite_locks
from edgequant.tracking.addresses import move_credentials, shown_store, without_password
from edgequant.tracking.away.current import current_server
from edgequant.tracking.away.leftovers import file_left, still_waiting
from edgequant.tracking.away.patience import NotFiled, at_once, patience_s
from edgequant.tracking.store_errors import ELSEWHERE, refusal, store_errors_told, unusable
from edgequant.yaml_files import check_regular

SECONDS_TO_ANSWER = 3.0
PROBE = "edgequant-looks-whether-it-answers"  # below an experiment's artifacts, where nothing is
CLIENT_NEEDS = (
    "start the server with --serve-artifacts, for a new experiment, or give this machine the store's own library and "
    "keys (for s3: pip install boto3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and MLFLOW_S3_ENDPOINT_URL)"
)


def check_store() -> None:
    """Refuse a store that does not answer, cannot be written to or is none of MLflow's; asked once per process.

    Raises:
        UserError: names the store's address and what to do.
    """
    move_credentials()
    patience_s()
    sqlite_locks.install()
    _check(str(mlflow.get_tracking_uri()), os.getcwd())


@cache
def _check(uri: str, _folder: str) -> None:
    """`_folder`: an address such as sqlite:///mlflow.db means another store in each."""
    try:
        address = urlsplit(uri)
        port = address.port
    except ValueError as error:
        raise unusable(uri, str(error)) from error
    if current_server() is not None:
        _check_server(uri, address, port)
    elif uri.startswith("sqlite:"):
        _check_sqlite(uri)
    with store_errors_told(), at_once():
        mlflow.MlflowClient().search_experiments(max_results=1)
    if current_server() is not None:
        file_left(Path("outputs"), uri)


def begin_files(folder: Path) -> None:
    """Before a run writes: what has to wait for its server goes into its folder; what killed runs left is removed."""
    if (server := current_server()) is not None:
        server.keep_in(folder)
    remove_all_leftovers(cache_dir())


def file_kept(folder: Path) -> int:
    """File with the server what runs below a folder kept while it was away; the number of folders where something was.

    Raises:
        UserError: the store does not answer, is no server, or another one than the entries are for.
        NotFiled: it stopped to answer meanwhile.
    """
    count, uri = len(still_waiting(folder)), shown_store()
    check_store()
    file_left(folder, str(mlflow.get_tracking_uri()))
    for place, meant in still_waiting(folder):
        if meant != uri:
            raise UserError(
                f"what waits in {str(place)!r} is for the tracking server {meant!r}, and the store is {uri!r}; "
                f"set MLFLOW_TRACKING_URI={meant}"
            )
        raise NotFiled(f"tracking server {uri!r} went away again; {str(place)!r} waits on: repeat the command")
    return count


def check_experiment(name: str) -> None:
    """Refuse an experiment that lies in MLflow's bin, which no run can go to.

    Raises:
        UserError: names it and the command that restores it.
    """
    if not name.strip():
        raise UserError(f"experiment must have a name, such as edgequant, got {name!r}")
    with store_errors_told(), at_once():
        found = mlflow.MlflowClient().get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(
            f"experiment {name!r} was deleted in {without_password(mlflow.get_tracking_uri())}; bring it back with "
            f"`{restore}`, or choose another with --experiment"
        )
    uri = str(mlflow.get_tracking_uri())
    if found is not None or uri.startswith("sqlite:"):  # whose artifacts lie in the working folder by default
        _check_artifacts(name, found.artifact_location if found is not None else "mlruns")


def check_artifact_store(location: str) -> None:
    """Refuse a store of artifacts elsewhere that does not answer, before a run exists.

    Args:
        location: of an experiment's artifacts; folders of this machine are `check_experiment`'s.

    Raises:
        UserError: names the location and what to do.
    """
    if urlsplit(location).scheme in ("", "file"):
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        with at_once():
            get_artifact_repository(f"{location}/{PROBE}").list_artifacts()
    except Exception as error:  # of whichever library speaks to such a store
        why, fix = refusal(error) or (first_line(error) or type(error).__name__, CLIENT_NEEDS)
        raise UserError(f"artifacts at {without_password(location)!r} cannot be reached: {why}; {fix}") from error


def _check_artifacts(experiment: str, location: str) -> None:
    address = urlsplit(location)
    if address.scheme not in ("", "file"):
        return
    folder = _nearest(Path(unquote(address.path)))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"artifacts of experiment {experiment!r} go to {location!r}, which cannot be written to: {str(folder)!r} "
            f"is {'read-only' if folder.is_dir() else 'no folder'}; choose another with --experiment"
        )


def _nearest(path: Path) -> Path:
    """The path, or what there is of it."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))


def answers(host: str | None, port: int, seconds: float = SECONDS_TO_ANSWER) -> bool:
    """Whether a server accepts a connection within seconds."""
    try:
        with socket.create_connection((host or "", port), timeout=seconds):
            return True
    except (OSError, UnicodeError):  # a host's name that is too long, or empty between two points
        return False


def _check_server(uri: str, address: SplitResult, port: int | None) -> None:
    if not address.hostname:
        raise unusable(uri, "it names no host")
    is_direct = not getproxies().get(address.scheme) or proxy_bypass(address.hostname)
    if is_direct and not answers(address.hostname, port or (443 if address.scheme == "https" else 80)):
        raise unusable(uri, "it does not answer", f"start the server, or {ELSEWHERE}")


def _check_sqlite(uri: str) -> None:
    from sqlalchemy.engine import make_url

    with store_errors_told():
        database = make_url(uri).database
    if not database or ":memory:" in database or "mode=memory" in uri:
        raise unusable(uri, "it is in memory, where no run is kept")
    if database.startswith("file:"):
        return
    path = Path(database)
    if path.exists() or path.is_symlink():
        check_regular(path, f"tracking store {uri!r}")
        _check_database(path, uri)
        return
    parent = _nearest(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise unusable(uri, f"{str(parent)!r} is no folder that can be written to")
    if "?" not in uri:
        _make_database(path)


def _make_database(path: Path) -> None:
    """MLflow takes seconds for its tables; whoever is stopped meanwhile, or comes second, must not find half of them.

    Made beside its place, under a name of this process, and put there whole unless another process was faster, which
    is waited for where the disk knows locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.parent), Scratch(path.parent, f"{path.name}.new-") as folder, store_errors_told():
        if path.exists():
            return
        made = Path(folder, path.name)
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{made.resolve()}").search_experiments(max_results=1)
        _put(made, path)


def _put(made: Path, path: Path) -> None:
    """Where nothing stands yet: by a link, which never replaces, or by renaming on a disk that has none."""
    try:
        os.link(made, path)
    except FileExistsError:
        return
    except OSError:
        if not path.exists():
            made.replace(path)


def _check_database(path: Path, uri: str) -> None:
    """Whether it is an SQLite database, MLflow's or empty, that can be written to."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=rw", uri=True, timeout=1)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            database.execute("BEGIN IMMEDIATE")  # a file or folder that is read-only refuses
            database.rollback()
    except sqlite3.DatabaseError as error:
        if "locked" not in str(error):  # another process writes, which is no fault
            raise unusable(uri, str(error)) from error
        return
    if tables and not tables & {"alembic_version", "experiments"}:
        raise unusable(uri, f"it is another program's database, with a table {sorted(tables)[0]!r}")
