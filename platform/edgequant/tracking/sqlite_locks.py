"""A database file that another process has locked is waited for, by every client of MLflow in this process.

MLflow waits 20 seconds within SQLite, where no signal gets through, and then fails. Here each try lasts a second, and
the tries as long as patience does (`away.patience`): a copy or a migration of the file may hold it for minutes.
"""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from edgequant.tracking.away.patience import patience_s

TRY_MS = 1000
OWN_TIMEOUT = "PRAGMA busy_timeout"
Result = TypeVar("Result")


class PatientCursor(sqlite3.Cursor):
    """Repeats a statement that found the database locked, as SQLite itself would."""

    def execute(self, sql: str, parameters: Any = (), /) -> PatientCursor:
        if sql.lstrip().startswith(OWN_TIMEOUT):
            sql = f"{OWN_TIMEOUT} = {TRY_MS}"
        return _unlocked(lambda: super(PatientCursor, self).execute(sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> PatientCursor:
        rows = list(parameters)
        return _unlocked(lambda: super(PatientCursor, self).executemany(sql, rows))


class PatientConnection(sqlite3.Connection):
    """Its cursors are patient, and so is its commit, which readers may hold up."""

    def cursor(self, factory: Any = PatientCursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        _unlocked(super().commit)


def _unlocked(attempt: Callable[[], Result]) -> Result:
    until = time.monotonic() + patience_s()
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.05)


@functools.cache
def install() -> None:
    """From now on this process's connections to SQLite files are patient."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "do_connect", _connect_patiently)


def _connect_patiently(dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
    if dialect.name == "sqlite":
        options.setdefault("factory", PatientConnection)
        options.setdefault("timeout", TRY_MS / 1000)
