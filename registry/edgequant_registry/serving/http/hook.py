"""How `mlflow models serve` comes to serve more than MLflow's own paths."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cached_property
from types import ModuleType
from typing import Any

SERVER, APP = "mlflow.pyfunc.scoring_server.app", "app"  # uvicorn's argument, SERVER:APP, as MLflow writes it
SERVING = "__pyfunc_model_path__"  # in the environment of MLflow's servers alone
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger("uvicorn.error")


def put_around_mlflows_app(wrapped: Callable[[Any], Any]) -> None:
    """Give uvicorn another app than MLflow's, made of it; outside MLflow's server nothing is changed.

    The module that uvicorn takes the app from is being imported while the model loads. It gets a class on which the
    name of the app is a property; that comes before what the module itself will write under that name. Nothing of how
    MLflow makes its app is touched. Where the module has another name, MLflow's server stays what it is, and a line in
    the log says so.

    Args:
        wrapped: an ASGI app made of MLflow's.
    """
    module = sys.modules.get(SERVER)
    if module is None:
        if SERVING in os.environ:
            _log.warning(f"this MLflow serves by another module than {SERVER}: /invocations alone answers, not /v1")
        return

    class WithOpenAIPaths(ModuleType):
        @cached_property
        def _wrapped(self) -> Any:
            return wrapped(self.__dict__[APP])

        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__("_wrapped" if name == APP else name)

    module.__class__ = WithOpenAIPaths


def call_when_told_to_end(end: Callable[[], None], *, at_last_s: float) -> None:
    """Before what the server itself does at SIGTERM and SIGINT, which is to wait for the requests that it has.

    Args:
        at_last_s: seconds after which uvicorn waits for no connection any more: a client may read nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, _both(end, before, at_last_s))


def _both(first: Callable[[], None], then: Callable[..., Any], at_last_s: float) -> Callable[..., Any]:
    def handle(number: int, frame: Any) -> Any:
        first()
        server = getattr(then, "__self__", None)
        if hasattr(server, "force_exit"):
            last = threading.Timer(at_last_s, setattr, (server, "force_exit", True))
            last.daemon = True
            last.start()
        return then(number, frame)

    return handle
