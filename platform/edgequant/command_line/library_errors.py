"""Errors of other libraries and of the system that a user can mend: told in one line, where they were not foreseen.

What is foreseen is a `UserError` of the place that checks it. Errors that a fault of this program would make
(TypeError, KeyError, AssertionError, ...) keep their traceback; a run that ends by one of these here has its
traceback.txt all the same.
"""

from __future__ import annotations

import errno
import json
import pickle
import sys
import zipfile
from pathlib import Path

import yaml

from edgequant.disk.faults import told_of
from edgequant.errors import UserError, first_line

# By name and not by class: to have their classes, one would import the libraries.
LIBRARIES = {
    "safetensors": "the file is damaged or cut off; copy or download it again",
    "tokenizers": "the tokenizer's files are damaged; copy or download them again",
    "huggingface_hub": "check the model's or data set's name and the network",
    "datasets": "check the data set's files",
    "pyarrow": "check the data set's files",
    "mlflow": "check MLFLOW_TRACKING_URI and that the store is there",
    "sqlalchemy": "check MLFLOW_TRACKING_URI and that the store is there",
    "alembic": "the store was made by another version of mlflow; install that, or run `mlflow db upgrade URI`",
    "requests": "check the network, or the address in MLFLOW_TRACKING_URI",
    "urllib3": "check the network, or the address in MLFLOW_TRACKING_URI",
    "httpx": "check the network",
    "ray": "look at the trial's or Ray's own log",
}
MEMORY = "use a smaller model, batch_size or sequence_length, or --device cpu"
SYSTEM = {
    errno.ENOENT: "name one that exists",
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.ENOTDIR: "a part of the path is a file; name another",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "it is a file; name a folder",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "its links lead in a circle; name another",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
}


def told(error: Exception) -> str | None:
    """The line for an error that a user can mend; None for one that a fault of this program would make."""
    if isinstance(error, UserError):
        return str(error)
    if (of_a_disk := told_of(error, *_stores())) is not None:
        return str(of_a_disk)
    name, library = type(error).__name__, type(error).__module__.partition(".")[0].removesuffix("_rust")
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return f"out of memory ({_first_line(error)}); {MEMORY}"
    if isinstance(error, OSError) and error.errno is not None:
        fix = SYSTEM.get(error.errno, "check the path and the disk")
        what = f"{str(error.filename)!r}: " if error.filename is not None else ""
        return f"{what}{error.strerror or name}; {fix}"
    if library in ("mlflow", "requests") and (refused := _refused_by_server(error)):
        return refused
    if library in LIBRARIES:
        return f"{library} reports {name}: {_first_line(error)}; {LIBRARIES[library]}"
    if isinstance(error, UnicodeDecodeError):
        return f"text must be UTF-8, got {error.object[error.start : error.start + 1]!r}; convert the file with iconv"
    damaged = (json.JSONDecodeError, yaml.YAMLError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError)
    if isinstance(error, damaged):  # an OSError without a number is transformers' for a file that it cannot use
        return f"a file could not be read ({name}: {_first_line(error)}); copy or make it again"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return f"{_first_line(error)} A path begins with ~ and no such user; write the path in full"
    return None


def _stores() -> list[Path]:
    """The tracking store's file, where it is one of this machine and MLflow is loaded."""
    if "mlflow" not in sys.modules:
        return []
    from edgequant.tracking import local_store

    found = local_store()
    return [] if found is None else [found]


def _refused_by_server(error: Exception) -> str | None:
    """What a tracking server said no to while a run was going on; MLflow is loaded if the error is its own."""
    if "mlflow" not in sys.modules:
        return None
    from edgequant.tracking import refusal, shown_store

    found = refusal(error)
    return f"tracking store {shown_store()!r}: {found[0]}; {found[1]}" if found else None


def _first_line(error: Exception) -> str:
    return (first_line(error) or type(error).__name__)[:300]
