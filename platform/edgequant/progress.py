"""Long work shows that it moves: a bar on a terminal, a line a minute where output goes to a file.

A bar is drawn on stderr where that is a terminal. Where stdout is none (CI, nohup, `mlflow run . -e qat > log`), a line
is printed there every minute: what is done, the rate, the time left, the last metrics; nothing where work is short.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

Result = TypeVar("Result")
LINE_SECONDS = 60.0  # between lines
_latest = [0.0]  # when any line was printed


class Progress:
    """A count that moves to `total`, seen as a bar or as a line a minute.

    Args:
        total: how much there is.
        title: of the work, in front.
        unit: what is counted, in the singular.
        initial: how much was done before, by an interrupted run.
        quiet: show nothing, as all but one of several processes do.
        bar_options: of tqdm.
    """

    def __init__(
        self, total: int, title: str, unit: str, *, initial: int = 0, quiet: bool = False, **bar_options: Any
    ) -> None:
        self.total, self.title, self.unit, self.done, self.first = total, title, unit, initial, initial
        self.note = ""
        self.started = time.monotonic()
        options = {"leave": False, **bar_options}
        self.bar = tqdm(total=total, initial=initial, desc=title, unit=unit, disable=True if quiet else None, **options)
        self._lines = Lines(weakref.WeakMethod(self.line), quiet=quiet)

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        self.done += count
        self.bar.update(count)

    def say(self, note: str) -> None:
        """What stands behind the count from now on: the loss, an error."""
        self.note = note
        self.bar.set_postfix_str(note, refresh=False)

    def line(self) -> str:
        """`qat tiny: step 120 of 400, 3.1 steps/s, 1:30 left, loss 2.31`."""
        seconds = time.monotonic() - self.started
        rate = (self.done - self.first) / seconds if seconds else 0.0
        told = [f"{self.title}: {self.unit} {self.done:,} of {self.total:,}"]
        if rate:
            told += [self._rate(rate), f"{clock((self.total - self.done) / rate)} left"]
        return ", ".join([*told, *filter(None, [self.note])])

    def _rate(self, rate: float) -> str:
        if rate < 1:
            return f"{1 / rate:.2g} s per {self.unit}"
        return f"{rate:,.0f} {self.unit}s/s" if rate >= 10 else f"{rate:.1f} {self.unit}s/s"

    def close(self) -> None:
        """The work has ended, one way or another."""
        self._lines.stop()
        self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class Lines:
    """Prints a line every minute until it is stopped, where stdout is no terminal.

    Args:
        line: returns the function that says the line, or None where the work is gone: an error ended it.
        only_when_silent: where no other line was printed in the meantime.
    """

    def __init__(
        self, line: Callable[[], Callable[[], str] | None], *, quiet: bool = False, only_when_silent: bool = False
    ) -> None:
        self.line, self.only_when_silent = line, only_when_silent
        self._ended = threading.Event()
        if not quiet and not _is_terminal():
            threading.Thread(target=self._run, name="progress", daemon=True).start()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(LINE_SECONDS):
            if self.only_when_silent and max(_latest[0], began) > time.monotonic() - 0.9 * LINE_SECONDS:
                continue
            if (say := self.line()) is None:
                return
            _latest[0] = time.monotonic()
            print(say(), flush=True)
            del say

    def stop(self) -> None:
        """No further line."""
        self._ended.set()


@contextmanager
def heartbeat(title: str) -> Iterator[None]:
    """Around work some of which counts nothing: a line `title: 7:00 so far` when no other line came for a minute."""
    started = time.monotonic()

    def line() -> str:
        return f"{title}: {clock(time.monotonic() - started)} so far"

    lines = Lines(lambda: line, only_when_silent=True)
    try:
        yield
    finally:
        lines.stop()


def progress(results: Iterable[Result], total: int, title: str, unit: str = "item") -> Iterator[Result]:
    """Pass results on while they are counted."""
    with Progress(total, title, unit) as shown:
        for result in results:
            yield result
            shown.update()


def clock(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_terminal() -> bool:
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # a notebook's stream, a closed one
        return False
