"""The tracking server as this process sees it: there, or away since a moment, with what waits for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgequant.commands import runnable
from edgequant.errors import first_line
from edgequant.progress import clock
from edgequant.tracking.addresses import without_password
from edgequant.tracking.away import patience
from edgequant.tracking.away.filing import file_entries
from edgequant.tracking.away.journal import FOLDER, Entry, Journal
from edgequant.tracking.away.mirror import Mirror

LONGEST_PAUSE_S = 5.0


class Server:
    """One tracking server. What cannot be written to it waits in a journal, which a thread files when it answers again.

    Args:
        uri: its address.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.mirror, self.ids = uri, Mirror(), dict[str, str]()
        self.folder: Path | None = None
        self.refused = 0
        self._journal: Journal | None = None
        self._lock, self._back = threading.RLock(), threading.Event()
        self._since, self._began, self._why, self._is_told = 0.0, "", "", False
        self._back.set()

    @property
    def is_away(self) -> bool:
        """Whether what is written waits."""
        return not self._back.is_set()

    def keep_in(self, folder: Path) -> None:
        """Where what waits is kept from now on: the folder of the run that this process writes."""
        self.folder = folder / FOLDER

    def write(self, send: Callable[[], Any], entry: Callable[[Journal], Entry]) -> Any:
        """Send, or let it wait; None where it waits.

        Args:
            send: the request.
            entry: makes what is kept of it.
        """
        while True:
            if not self.is_away:
                try:
                    return send()
                except Exception as error:  # of whichever library speaks to the server
                    if not patience.is_away(error):
                        raise
                    self._leave(error)
            with self._lock:
                if self.is_away:
                    self._journal = self._journal or self._new_journal()
                    self._journal.append(entry(self._journal))
                    return None

    def read(self, send: Callable[[], Any], known: Callable[[], Any | None]) -> Any:
        """An answer of the server; while it is away what this process knows, or else the answer when it is back.

        Raises:
            NotFiled: it stayed away for longer than the patience.
        """
        until = None
        while True:
            if not self.is_away:
                try:
                    return send()
                except Exception as error:
                    if not patience.is_away(error):
                        raise
                    self._leave(error)
            if (found := known()) is not None:
                return found
            until = until or max(self._since + patience.patience_s(), time.monotonic())
            if not self._back.wait(max(0.0, until - time.monotonic())):
                raise self.gone()

    def settle(self, *, wait: bool) -> str | None:
        """At the end of a run: None where all is filed, else the line that says what is kept where.

        Args:
            wait: until the server is back, or for what is left of the patience.
        """
        left = max(self._since + patience.patience_s() - time.monotonic(), 2 * patience.PAUSE_S) if wait else 0.0
        if self._back.wait(left):
            return None
        return str(self.gone())

    def gone(self) -> patience.NotFiled:
        """The error of a server that stayed away."""
        told = f"tracking server {self._shown()!r} is away since {self._began} ({self._why})"
        if self._journal is None:
            return patience.NotFiled(f"{told}; start it, or wait longer for it with {patience.VARIABLE}=SECONDS")
        place = self._journal.folder.parent
        shown = os.path.relpath(place) if place.is_relative_to(Path.cwd()) else str(place)
        return patience.NotFiled(
            f"{told}; what the run logged meanwhile, {self._counted()}, is kept in {shown!r}: when the server is "
            f"back, file it with `{runnable(f'edgequant sync --folder {shown}')}`"
        )

    # ------------------------------------------------------------------------------------------------------ the outage

    def _leave(self, error: Exception) -> None:
        with self._lock:
            if self.is_away:
                return
            self._since, self._began, self._is_told = time.monotonic(), time.strftime("%H:%M:%S"), False
            self._why = _short(error)
            self._back.clear()
        threading.Thread(target=self._return, name="to the tracking server", daemon=True).start()

    def _new_journal(self) -> Journal:
        folder = self.folder or Path("outputs", FOLDER, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}").resolve()
        journal = Journal(folder, self._shown())
        self.ids |= journal.ids
        return journal

    def _return(self) -> None:
        pause = patience.PAUSE_S / 4
        with patience.at_once():
            while not self._file():
                if not self._is_told and time.monotonic() - self._since >= patience.PAUSE_S:
                    self._is_told = True
                    self._say(f"away since {self._began} ({self._why}); going on, what is logged waits on disk")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _file(self) -> bool:
        """File all that waits; whether nothing does any more."""
        journal, waited = self._journal, self._counted()
        try:
            if journal is None:
                answers(self.uri)
            else:
                self.refused += file_entries(journal, self.ids)
        except Exception as error:
            if not patience.is_away(error):
                self._why = _short(error)
            return False
        with self._lock:
            if self._journal is not journal or (journal is not None and journal.count):
                return False
            self._journal = None
            if journal is not None:
                journal.close()
            self._say_back(waited)
            self._back.set()
        return True

    def _say_back(self, waited: str) -> None:
        if self._is_told:
            self._say(f"back after {clock(time.monotonic() - self._since)}; {waited} filed")
        if self.refused:
            self._say(f"did not take {self.refused} of them; they are kept in {str(self.folder)!r}")
            self.refused = 0

    def _counted(self) -> str:
        count = 0 if self._journal is None else self._journal.count
        return f"{count:,} entr{'y' if count == 1 else 'ies'}"

    def _shown(self) -> str:
        return without_password(self.uri)

    def _say(self, what: str) -> None:
        print(f"tracking server {self._shown()!r} {what}", file=sys.stderr, flush=True)


def answers(uri: str) -> None:
    """Ask a server whether it is well.

    Raises:
        MlflowException: it does not answer.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    http_request(get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=5, raise_on_status=False)


def _short(error: BaseException) -> str:
    text = first_line(error)
    for told, meant in (("refused", "connection refused"), ("timed out", "no answer"), ("resolve", "host not found")):
        if told in text:
            return meant
    return without_password(text.split("(Caused by")[-1])[:120]
