"""JSON artifacts of runs, as a report reads them: one that is damaged is told by its run and name, and left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edgequant import tracking
from edgequant.errors import UserError, first_line
from edgequant.evaluation.tasks.registry import paired_metrics
from edgequant.tracking.details import ARTIFACT

ITEMS = "items"  # folder of a run's tables by item
T = TypeVar("T")
Rows = list[dict[str, Any]]


class Artifacts:
    """What runs left beside their metrics, each file read once.

    What is not there was never written, and nothing is said. What is there and is not what a run writes (cut off, of
    another tool, changed by hand) costs a report what stood in it, and not the report.

    Attributes:
        damaged: a line for each such file.
    """

    def __init__(self) -> None:
        self.damaged: list[str] = []
        self._known: dict[tuple[str, str], Any] = {}

    def details(self, run_id: str) -> dict[str, float]:
        """As `tracking.details_of`."""
        told = partial(self.tell, run_id, ARTIFACT)
        return dict(self._once(run_id, ARTIFACT, lambda: tracking.details_of(run_id, told)))

    def items(self, run_id: str) -> dict[str, Rows]:
        """Item tables by name, those that comparisons look at."""
        return dict(self._once(run_id, ITEMS, lambda: self._tables(run_id)))

    def verdict(self, run_id: str) -> str:
        """Whether QAT's recovered fraction is defined, as the run itself said it; empty where it said nothing."""
        return self._read(run_id, "verdict.json", _fraction) or ""

    def environment(self, run_id: str) -> dict[str, Any]:
        """Machine and versions; empty where a run logged none."""
        return self._read(run_id, "environment.json", _environment) or {}

    def tell(self, run_id: str, name: str, why: str) -> None:
        """Note that a file is damaged."""
        fix = "restore the file, or make the run again"
        self.damaged.append(f"run {run_id[:12]}: {name} is damaged ({why:.100}) and left out; {fix}")

    def _once(self, run_id: str, name: str, make: Callable[[], T]) -> T:
        if (run_id, name) not in self._known:
            self._known[run_id, name] = make()
        found: T = self._known[run_id, name]
        return found

    def _tables(self, run_id: str) -> dict[str, Rows]:
        names = dict.fromkeys(each.table for each in paired_metrics())
        folder = _fetched(run_id, ITEMS)
        files = {} if folder is None else {name: folder / f"{name}.json" for name in names}
        tables = {
            name: self._parsed(run_id, f"{ITEMS}/{file.name}", file, partial(_table, name=name))
            for name, file in files.items()
            if file.exists()
        }
        return {name: table for name, table in tables.items() if table is not None}

    def _read(self, run_id: str, name: str, parse: Callable[[Any], T]) -> T | None:
        def found() -> T | None:
            file = _fetched(run_id, name)
            return None if file is None else self._parsed(run_id, name, file, parse)

        return self._once(run_id, name, found)

    def _parsed(self, run_id: str, name: str, file: Path, parse: Callable[[Any], T]) -> T | None:
        try:
            return parse(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.tell(run_id, name, f"{type(error).__name__}: {first_line(error)}")
            return None


def _fetched(run_id: str, name: str) -> Path | None:
    try:
        return tracking.download(f"runs:/{run_id}/{name}")
    except UserError:
        return None


def _fraction(found: Any) -> str:
    return str(found.get("edgequant.recovered_fraction", ""))


def _table(found: Any, *, name: str) -> Rows:
    """Rows of a table whose scores are numbers, or absent where nothing could be scored."""
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    columns = {column: [row[column] for row in rows] for column in found["columns"]}
    for paired in paired_metrics():
        for column in ("nats", "tokens") if paired.value is None else (paired.value,):
            scores = columns.get(column, []) if paired.table == name else []
            if wrong := [value for value in scores if not (value is None or isinstance(value, int | float))]:
                raise TypeError(f"{column} of an item is {wrong[0]!r:.60}")
    return rows


def _environment(found: Any) -> dict[str, Any]:
    kinds = {"gpus": list, "packages": dict}
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind | None):
            raise TypeError(f"{name} is {found[name]!r:.60}")
    return dict(found) | {"gpus": [str(each) for each in found.get("gpus") or []]}
