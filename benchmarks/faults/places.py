"""A try's place: a working folder with a store, a cache, room for temporary files and files of a user's own.

Every try has the same absolute path, since a store keeps artifacts by it: a place is copied there from a template.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from faults.forking import MARK, Child, Ended, fork

RUN_ID = re.compile(r"[0-9a-f]{32}")
# What a second command says rightly otherwise than an undisturbed one: one more option, what it need not compute, when.
OF_THE_SECOND = re.compile(
    r'resume"?: (true|false)|"torch_threads": (null|\d+)|'
    r'\n[\d,]+ scores were read from [^\n"]*|\d\d \w+ \d{4} \d\d:\d\d UTC'
)
TEXT = (".json", ".jsonl", ".md", ".html", ".csv", ".yaml", ".txt", "MLmodel")
# Names that a sweeping clean-up could take for a command's own.
THEIRS = (
    "thesis.tex", "outputs/notes.txt", ".made.original/chapter.txt", "made.replaced-by-me/data.bin",
    ".checkpoint.mine/a", "mlruns-old/x.txt", "mlflow.db.backup", "finished-blocks/mine.txt",
    "../tmp/tmpmine/letter.txt", "checkpoint-3/x.bin",
)  # fmt: skip
# Parts of metrics' names: the machine's mood, and what a second command finds done.
NOISY = ("tokens_per_second", "latency/", "system/", "peak", "resident", "files_processed")
BOOKS = ("mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm")


class Place(NamedTuple):
    """Where a try runs; `work` is the working folder, beside it `cache` and `tmp`."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def database(self) -> Path:
        return self.work / "mlflow.db"

    def said(self, name: str = "said") -> Path:
        """What commands print here; not in the place, whose disk may be full."""
        return self.root.with_name(f"{self.root.name}-{name}")

    def laid_out(self) -> Place:
        """Empty, with its folders."""
        _emptied(self.root)
        for name in ("work", "cache", "tmp"):
            (self.root / name).mkdir(parents=True)
        return self

    def like(self, template: Path) -> Place:
        """A copy of a template takes the place of what was here."""
        _emptied(self.root)
        for said in self.root.parent.glob(f"{self.root.name}-*"):
            said.unlink()
        shutil.copytree(template, self.root, symlinks=True, dirs_exist_ok=True)
        return self

    def begin(
        self, arguments: list[str], mark: str, *, anew: bool = False, log: str = "said", **environment: str
    ) -> Child:
        """Start a command here; `anew`: as a process of its own, imports and all."""
        return fork(arguments, self.work, self.said(log), self.environment(mark) | environment, anew=anew)

    def environment(self, mark: str) -> dict[str, str]:
        """Of commands here."""
        return {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.database}", "EDGEQUANT_CACHE": str(self.root / "cache"),
            "TMPDIR": str(self.root / "tmp"), MARK: mark, "HOME": str(self.root),
        }  # fmt: skip

    def run(
        self, arguments: list[str], mark: str, seconds: float = 300, *, anew: bool = False, **environment: str
    ) -> Ended:
        """Run a command here to its end.

        Raises:
            TimeoutError: it does not end.
        """
        log = self.said()
        before = len(log.read_text(errors="replace")) if log.exists() else 0
        child = self.begin(arguments, mark, anew=anew, **environment)
        ended = child.wait(seconds)
        if ended is None:
            child.end()
            raise TimeoutError(f"{arguments[0]} still ran after {seconds:.0f} s")
        return ended._replace(said=ended.said[before:])


def _emptied(folder: Path) -> None:
    """What is in a folder goes; the folder, which may be a mount point, stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def leave_files(place: Place) -> dict[str, str]:
    """Put a user's files into a working folder; their SHA-256 by name."""
    for name in THEIRS:
        file = place.work / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"of a user's own: {name}".encode() * 50)
    return {name: _sha256(place.work / name) for name in THEIRS}


def touched(place: Place, before: dict[str, str]) -> list[str]:
    """A user's files that are gone or changed."""
    return [name for name, digest in before.items() if _sha256(place.work / name) != digest]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


# ------------------------------------------------------------------------------------------------- what a command left


class Run(NamedTuple):
    """A run as the store's tables have it; its metrics without times and speeds."""

    id: str
    status: str
    workflow: str
    parent: str
    names: tuple[str, ...]  # variant, model, scheme, number of a search's trial; of a nested run what is around it
    metrics: dict[str, float]

    @property
    def title(self) -> str:
        return "/".join(filter(None, [self.workflow, *self.names])) or "run without tags"


def runs_of(database: Path, experiment: str | None = None, *, but: Collection[str] = ()) -> list[Run]:
    """Every run that was not deleted, by the tables themselves.

    Args:
        experiment: the only one that counts.
        but: ids of runs that do not.
    """
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as store:
        wanted = "" if experiment is None else f" AND e.name = '{experiment}'"
        query = (
            "SELECT run_uuid, status FROM runs JOIN experiments e USING (experiment_id) "
            f"WHERE runs.lifecycle_stage = 'active'{wanted} ORDER BY start_time"
        )
        rows = [row for row in store.execute(query).fetchall() if row[0] not in but]
        return [_run(store, identifier, status) for identifier, status in rows]


def _run(store: sqlite3.Connection, identifier: str, status: str) -> Run:
    tags = dict(store.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [identifier]))
    measured = dict(store.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", [identifier]))
    metrics = {name: value for name, value in measured.items() if not any(part in name for part in NOISY)}
    names = tuple(tags.get(f"edgequant.{key}", "") for key in ("variant", "model", "scheme", "trial"))
    parent = tags.get("mlflow.parentRunId", "")
    around = store.execute("SELECT value FROM tags WHERE run_uuid = ? AND key = 'edgequant.workflow'", [parent])
    names += tuple(f"in {workflow}" for (workflow,) in around)  # a pipeline has PTQ by `ptq` and by `qat`
    return Run(identifier, status, tags.get("edgequant.workflow", ""), parent, names, metrics)


def registered(database: Path) -> dict[str, str]:
    """Aliases and numbers of versions in the registry."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as store:
        aliases = store.execute("SELECT name || '@' || alias, version FROM registered_model_aliases").fetchall()
        versions = store.execute("SELECT name, count(*) FROM model_versions GROUP BY name").fetchall()
    return {name: str(value) for name, value in [*aliases, *versions]}


def is_sound(database: Path) -> bool:
    """What SQLite itself says of the file."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as store:
        return [row[0] for row in store.execute("PRAGMA integrity_check")] == ["ok"]


def left_by(place: Place, runs: list[Run]) -> dict[str, Any]:
    """What commands have made: files by their SHA-256 and runs by their metrics, ids of runs replaced.

    Args:
        runs: that count; files of those that have not finished do not.
    """
    unfinished = {run.id for run in runs if run.status != "FINISHED"}
    titles = {run.id: f"<{run.title}>" for run in runs}
    found: dict[str, Any] = {}
    for name, file in _files(place):
        if not unfinished & {*RUN_ID.findall(name)}:
            found[RUN_ID.sub(lambda one: titles.get(one[0], one[0]), name)] = _content(file)
    for run in runs:
        if run.status == "FINISHED":
            found |= {f"run {run.title}: {metric}": value for metric, value in run.metrics.items()}
    return found | {f"registry {name}": value for name, value in registered(place.database).items()}


def _files(place: Place) -> Iterator[tuple[str, Path]]:
    for top in ("work", "cache", "tmp"):
        for file in sorted((place.root / top).rglob("*")):
            if file.is_dir() and not file.is_symlink() and any(file.iterdir()):
                continue
            if file.name not in BOOKS:
                yield str(file.relative_to(place.root)), file


def _content(file: Path) -> str:
    if not file.is_file():
        return "no file"
    if not file.name.endswith(TEXT) or file.stat().st_size > 5_000_000:
        return _sha256(file)
    told = OF_THE_SECOND.sub("", RUN_ID.sub("RUN", file.read_text(errors="replace")))
    return hashlib.sha256(told.encode()).hexdigest()
