"""What Ray's processes import, and `sigterm_kept`. Light.

Ray takes SIGTERM for itself, in Python to drain for half a minute, in C++ to die of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any
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


def same_code(*, elsewhere: bool) -> dict[str, Any]:
    """For `runtime_env`: processes import the code that this one runs, wherever it lies.

    Args:
        elsewhere: they are on other machines, to which the package is shipped.
    """
    if elsewhere:
        import edgequant

        return {"py_modules": [edgequant.__path__[0]], "excludes": ["__pycache__"]}
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}}
