"""`sigterm_kept`: Ray takes SIGTERM for itself, in Python to drain for half a minute, in C++ to die of it. Light."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from unittest import mock

CHECKED_S = 0.005
ACTION_BYTES = 1024  # more than any system's `struct sigaction`, which is given back as it was found


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Around `ray.init`: inside and behind it, SIGTERM does what it did before; what C++ changes lasts milliseconds."""
    from ray._private import utils

    library, action, ended = ctypes.CDLL(None), ctypes.create_string_buffer(ACTION_BYTES), threading.Event()
    library.sigaction(signal.SIGTERM, None, action)

    def keep() -> None:
        while not ended.wait(CHECKED_S):
            library.sigaction(signal.SIGTERM, action, None)

    thread = threading.Thread(target=keep, name="sigterm", daemon=True)
    with mock.patch.object(utils, "set_sigterm_handler", lambda _handler: None):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            library.sigaction(signal.SIGTERM, action, None)
