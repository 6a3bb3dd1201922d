"""What is tried and must be told: a situation is an input, what happens to it, and the line that is printed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgequant.__main__ import main

HAPPENS = ("refused", "ended", "told", "read as meant")


@dataclass
class Place:
    """A test's folder, which is the working directory, with `tiny` as a transformers folder and the real data.

    Attributes:
        folder: empty but for the tracking store.
        tiny_folder: not to be written to; copy it.
        data: gives the folder with the official files, not to be written to; skips the test where it is not there.
        status: exit status of the last command.
    """

    folder: Path
    tiny_folder: Path
    data: Callable[[], Path] = Path
    status: int = 0

    def edgequant(self, *arguments: str | Path) -> str:
        """Run a command in this process; what it printed on both streams, without the folder's own path."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            self.status = main([str(argument) for argument in arguments])
        return said.getvalue().replace(f"{self.folder}/", "").replace(str(self.folder), ".")


@dataclass(frozen=True)
class Situation:
    """One row of docs/reliability.md.

    Attributes:
        given: the input, in a few words: "model folder that lacks one matrix".
        command: how it was given, in short: "ptq --model FOLDER".
        happens: `refused`: exit status 2, before a run exists; `ended`: exit status 2, one line, the run that had begun
            is FAILED and nothing is registered; `told`: done, and a line says what was found;
            `read as meant`: done, and equal to what an independent computation gives.
        line: what must be printed, paths relative to the working folder; `...` stands for anything within the line.
        run: makes the input in a place, gives the command, asserts what else must hold; returns what was printed.
    """

    given: str
    command: str
    happens: str
    line: str
    run: Callable[[Place], str]
