"""SIGINT, SIGTERM and SIGHUP, raised where nothing is left half done. Light: the standard library alone.

A signal becomes `Interrupted`, an exception of the main thread, so that everything is closed as after an error; but not
within a call to the tracking store or an import, which go on to their end first, for PATIENCE_S at most. A thread
beside learns of the signal even while the main thread computes outside Python. Where that has not ended the process
UNWINDING_S later, or a second signal comes, it ends the runs and the process itself. Signals that are ignored, as
SIGHUP is under nohup, stay ignored.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any, NoReturn, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 3.0  # for a call to the store, or an import, to come to its end
UNWINDING_S = 6.0  # for the main thread to close everything
ENDING_S = 3.0  # for the runs to be ended where the main thread did not
REPEATED_S = 0.5  # within which a second signal is the same: a terminal and `mlflow run` both pass on a Ctrl-C
POLL_S = 0.1
WHOLE = ("mlflow", "sqlalchemy", "alembic", "importlib")  # packages whose calls are not cut short
CLOSE = b"\0"


class Interrupted(SystemExit):
    """A signal ends this process; `code` is 128 and the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


_uninterrupted: set[CodeType] = set()
_endings: list[Callable[[], None]] = []
_runs: dict[str, str] = {}


def uninterrupted(function: Function) -> Function:
    """A function in which, and in whatever it calls, no signal is raised; of a generator, in its own steps."""
    _uninterrupted.add(function.__code__)  # type: ignore[attr-defined]
    return function


def at_end(end: Callable[[], None]) -> None:
    """What a signal's end does last, whatever the main thread came to: it may be called from another thread, twice."""
    if end not in _endings:
        _endings.append(end)


def note_begin(run_id: str) -> None:
    """A run that stands by itself has begun: the line of a signal's end says what has become of it."""
    _runs[run_id] = "is RUNNING"


def note_end(run_id: str, what: str) -> None:
    """What has become of a run: `is KILLED`."""
    if run_id in _runs:
        _runs[run_id] = what


def told() -> list[str]:
    """Each run and what has become of it."""
    return [f"run {run_id} {what}" for run_id, what in _runs.items()]


def received() -> int | None:
    """The number of the signal that ends this process, if one does."""
    return _watch.number if _watch is not None else None


@contextlib.contextmanager
def raised(signals: Sequence[int] = (signal.SIGTERM, signal.SIGHUP)) -> Iterator[None]:
    """Inside, signals are raised, unless they are already; for the main thread alone.

    Python raises SIGINT itself; a script or notebook may want to catch that and go on.
    """
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = Watch(signals)
    watch.begin()
    try:
        yield
    finally:
        watch.stop()
        if watch.number is not None and not watch.is_raised:  # came too late to be raised; not lost all the same
            signal.raise_signal(watch.number)


class Watch:
    """The handlers of this process and the thread beside the main one, from `begin` to `stop`.

    Args:
        signals: that are raised.
        line: says what became of the process, once it is ended; from its first signal on, nothing else is said on
            stderr. None: nothing is said, and stderr stays as it is.
        last: done when all else is.
    """

    def __init__(
        self,
        signals: Sequence[int] = SIGNALS,
        line: Callable[[], str] | None = None,
        last: Callable[[], None] | None = None,
    ) -> None:
        self.signals, self.line, self.last = signals, line, last
        self.number: int | None = None
        self.is_raised = False
        self._since, self._repeated, self._own = 0.0, False, 0
        self._stderr: int | None = None
        self._ending = threading.Lock()

    def begin(self) -> None:
        """Take the signals over."""
        global _watch
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        before = {number: signal.getsignal(number) for number in self.signals}
        self._before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
        for number in self._before:
            signal.signal(number, self._handle)
        self._woken_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        _watch = self
        self._thread.start()

    def stop(self, handler: Any = None) -> None:
        """Give them back.

        Args:
            handler: what they do from now on, if not what they did before.
        """
        global _watch
        _watch = None
        for number, before in self._before.items():
            signal.signal(number, before if handler is None else handler)
        signal.set_wakeup_fd(self._woken_before)
        sys.unraisablehook = self._hook_before
        os.write(self._write, CLOSE)
        self._thread.join()
        os.close(self._write)
        os.close(self._read)

    def forget(self) -> None:
        """In a process forked from this one: signals do what they do by default."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)

    def end(self, before: Callable[[], object] | None = None) -> NoReturn:
        """End this process: its runs, what it has started, and itself, with one line on stderr.

        Args:
            before: what the main thread has to close behind its work.
        """
        self._silence()
        end_runs(ENDING_S)
        end_descendants()
        if self._ending.acquire(blocking=False):
            self._tell()
            if self.last is not None:
                _without_error(self.last)
        if before is not None:
            _without_error(before)  # type: ignore[arg-type]
        os._exit(128 + (self.number or 0))

    # ------------------------------------------------------------------------------------------------ the main thread

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        if self.is_raised or (_is_whole(frame) and time.monotonic() < self._since + PATIENCE_S):
            return  # the thread asks again
        self.is_raised = True
        self._silence()
        raise Interrupted(self.number or number)

    def _unraisable(self, found: Any) -> None:
        """Raised where Python lets nothing be raised, as in a finaliser: ask again."""
        if isinstance(found.exc_value, Interrupted):
            self.is_raised = False
        else:
            self._hook_before(found)

    def _note(self, number: int) -> None:
        if self.number is None:
            self._since, self.number = time.monotonic(), number

    def _silence(self) -> None:
        """What libraries say while they are torn down is no news."""
        if self.line is None or self._stderr is not None:
            return
        with contextlib.suppress(OSError):
            self._stderr = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def _tell(self) -> None:
        if self.line is not None:
            with contextlib.suppress(OSError):
                os.write(2 if self._stderr is None else self._stderr, f"{self.line()}\n".encode(errors="replace"))

    # ----------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._read], [], [], None if self.number is None else POLL_S)
            if ready:
                woken = os.read(self._read, 512)
                if CLOSE in woken:
                    return
                for number in woken:
                    self._arrived(number)
            if self.number is not None:
                self._go_on()

    def _arrived(self, number: int) -> None:
        if number not in self._before:
            return
        if self._own:
            self._own -= 1
        elif self.number is not None and time.monotonic() > self._since + REPEATED_S:
            self._repeated = True
        self._note(number)

    def _go_on(self) -> None:
        assert self.number is not None
        if self._repeated or time.monotonic() > self._since + UNWINDING_S:
            self.end()
        if not self.is_raised and signal.getsignal(self.number) == self._handle:
            self._own += 1
            signal.pthread_kill(threading.main_thread().ident or 0, self.number)


def end_runs(seconds: float) -> None:
    """Do what `at_end` was told, for so long at most."""
    threads = [threading.Thread(target=_without_error, args=(end,), daemon=True) for end in _endings]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def leave(line: str) -> NoReturn:
    """End this process at once, with one line on stderr and status 2: it must write nothing more."""
    end_descendants()
    print(line, file=sys.stderr, flush=True)
    os._exit(2)


def end_descendants() -> None:
    """Kill what this process has started, and what that has."""
    with contextlib.suppress(Exception):
        import psutil

        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()


def _without_error(end: Callable[[], None]) -> None:
    with contextlib.suppress(BaseException):
        end()


def _is_whole(frame: FrameType | None) -> bool:
    """Whether the main thread is where it must not be cut short: `contextlib` is between a `with` and its body."""
    if frame is not None and frame.f_globals.get("__name__") == "contextlib":
        return True
    while frame is not None:
        if frame.f_code in _uninterrupted or str(frame.f_globals.get("__name__")).partition(".")[0] in WHOLE:
            return True
        frame = frame.f_back
    return False


def _forget_in_child() -> None:
    global _watch
    if _watch is not None:
        with contextlib.suppress(Exception):
            _watch.forget()
        _watch = None


_watch: Watch | None = None
os.register_at_fork(after_in_child=_forget_in_child)
