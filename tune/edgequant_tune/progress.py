"""One progress line for a search: trials ended, the best value so far, trials running and failed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from edgequant_tune.objectives import Objective
from edgequant_tune.trial_records import TrialRecord, ranked


class Progress:
    """A live bar on a terminal; where output goes to a file, one line for each trial that ends."""

    def __init__(self, total: int, objective: Objective) -> None:
        self.total, self.objective = total, objective
        self.console = Console()
        self.started = time.monotonic()
        self.bar: Bar | None = None
        if self.console.is_terminal:
            columns = (TextColumn("trials"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Bar(*columns, TextColumn("{task.description}"), console=self.console)
            self.task = self.bar.add_task("starting", total=total)
            self.bar.start()

    def update(self, records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> None:
        """Move the bar to the present state."""
        if self.bar is not None:
            ended = sum(record.status != "unfinished" for record in records)
            self.bar.update(self.task, completed=ended, description=self._state(records, ranked(records, objectives)))

    def ended(self, record: TrialRecord, best: Sequence[TrialRecord]) -> None:
        """Say that a trial has ended."""
        if self.bar is None:
            value = record.error or self._value(record)
            told = f"trial {record.number}/{self.total}  {record.status:9} {value}"
            leader = f"  best: trial {best[0].number}" if best else ""
            self.console.print(f"{told}{leader}  {time.monotonic() - self.started:.0f} s", soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _state(self, records: Sequence[TrialRecord], best: Sequence[TrialRecord]) -> str:
        counts = [(status, sum(o.status == status for o in records)) for status in ("stopped", "failed")]
        parts = [f"best {self._value(best[0])}"] if best else []
        return ", ".join([*parts, *(f"{count} {status}" for status, count in counts if count)]) or "training"

    def _value(self, record: TrialRecord) -> str:
        value = record.metrics.get(self.objective.metric)
        return f"{self.objective.metric} {value:.4g}" if value is not None else ""
