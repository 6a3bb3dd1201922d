"""How long a tracking server may stay away, and which errors say that it is."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from edgequant.errors import UserError

VARIABLE = "EDGEQUANT_TRACKING_PATIENCE"
DEFAULT_S = 420.0
PAUSE_S = 2.0  # between two tries
OVERLOADED = (408, 429, 500, 502, 503, 504)
FAILING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
UNANSWERED = re.compile(r"API request to \S+ failed with (timeout )?exception")
Result = TypeVar("Result")
_direct: ContextVar[bool] = ContextVar("direct", default=False)


class NotFiled(UserError):
    """What a run logged is kept on disk, since its tracking server stayed away: the command line ends with 1."""

    exit_status = 1


def patience_s() -> float:
    """Seconds for which a tracking store may be silent before a run that has nothing else to do ends without it.

    Raises:
        UserError: the variable holds no such number.
    """
    given = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(given) if given else DEFAULT_S
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UserError(
            f"{VARIABLE} must be a number of seconds, 0 or more, got {given!r}; leave it out for {DEFAULT_S:g}"
        )
    return seconds


def is_away(error: BaseException) -> bool:
    """Whether an error is of a store that is away for now, rather than of what is written."""
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import OperationalError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in OVERLOADED
    if isinstance(error, RestException):
        return error.error_code in FAILING
    if isinstance(error, MlflowException):
        return bool(UNANSWERED.search(str(error))) or error.error_code == FAILING[1] or _failed(str(error))
    return isinstance(error, ConnectionError | TimeoutError | OperationalError) or _is_of_requests(error)


def _failed(text: str) -> bool:
    found = re.search(r"failed with error code (\d{3})", text)
    return found is not None and int(found[1]) in OVERLOADED


def _is_of_requests(error: BaseException) -> bool:
    import requests

    return isinstance(error, requests.ConnectionError | requests.Timeout)


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, a server that is away is an error at once: for checks before a run, and for filing what waited."""
    before = _direct.set(True)
    try:
        yield
    finally:
        _direct.reset(before)


def is_direct() -> bool:
    """Whether the caller is inside `at_once`."""
    return _direct.get()


def patiently(attempt: Callable[[], Result], before_again: Callable[[], None]) -> Result:
    """Try until the store answers, or until it was silent for as long as the patience lasts.

    Args:
        before_again: called before every try but the first.

    Raises:
        whatever `attempt` raises that is not of a store that is away; the last error once patience is over.
    """
    until, attempts = time.monotonic() + patience_s(), 0
    while True:
        attempts += 1
        try:
            if attempts > 1:
                before_again()
            return attempt()
        except Exception as error:  # of whichever library speaks to the store
            if not is_away(error) or time.monotonic() > until:
                raise
        time.sleep(PAUSE_S)
