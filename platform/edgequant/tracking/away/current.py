"""The tracking server that this process writes to, if it writes to one, and what becomes of what it could not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import mlflow

from edgequant.tracking.away.patience import NotFiled, at_once

if TYPE_CHECKING:
    from edgequant.tracking.away.mirror import Mirror
    from edgequant.tracking.away.server import Server


def current_server() -> Server | None:
    """The tracking server; None where runs go to a database or a folder."""
    uri = str(mlflow.get_tracking_uri())
    if not uri.startswith(("http://", "https://")):
        return None
    from edgequant.tracking.away.stores import install, server

    install()
    return server(uri)


def settle(*, failed: bool = False) -> None:
    """At the end of a run: wait for a server that is away, as long as the patience lasts.

    Args:
        failed: the run ended by an error or a signal, which stays the one that is told: do not wait, print one line.

    Raises:
        NotFiled: what the run logged is kept on disk; says where, and the command that files it.
    """
    server = current_server()
    if server is None or (told := server.settle(wait=not failed)) is None:
        return
    if not failed:
        raise NotFiled(told)
    print(told, file=sys.stderr, flush=True)


@contextmanager
def settled() -> Iterator[None]:
    """Around a run that stands by itself: what it logged is in the store by the end, or kept on disk and told.

    Raises:
        NotFiled: as `settle`, of a run that ended well.
    """
    try:
        yield
    except BaseException:
        settle(failed=True)
        raise
    settle()


def answered(ask: Callable[[], Any], otherwise: Callable[[Mirror], Any]) -> Any:
    """What the store answers; of a server that is away, what this process knows of it."""
    server = current_server()
    return ask() if server is None else server.read(lambda: _at_once(ask), lambda: otherwise(server.mirror))


def kept_or_done(do: Callable[[], Any], entry: dict[str, Any]) -> Any | None:
    """Do it; None where the server is away: the entry is kept and filed when it is back."""
    server = current_server()
    return do() if server is None else server.write(lambda: _at_once(do), lambda _: entry)


def _at_once(do: Callable[[], Any]) -> Any:
    with at_once():
        return do()


def real_id(run_id: str) -> str:
    """A run's id in the store, where it began while the server was away and that is back."""
    server = current_server()
    return run_id if server is None else server.ids.get(run_id, run_id)
