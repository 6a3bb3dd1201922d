"""One progress line for a search: trials ended, the best value so far, trials running and failed."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from edgequant_tune.bookkeeping.ledger import Ledger
from edgequant_tune.objectives import Objective
from edgequant_tune.trial_records import TrialRecord


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

    def update(self, ledger: Ledger) -> None:
        """Move the bar to the present state."""
        if self.bar is not None:
            ended = len(ledger.records) - ledger.counts["unfinished"]
            self.bar.update(self.task, completed=ended, description=self._state(ledger))

    def ended(self, record: TrialRecord, ledger: Ledger) -> None:
        """Say that a trial has ended."""
        if self.bar is None:
            value = record.error or "; ".join(filter(None, (self._value(record), record.note)))
            told = f"trial {record.number}/{self.total}  {record.status:9} {value}"
            leader = f"  best: {ledger.best.name}" if ledger.best else ""
            self.console.print(f"{told}{leader}  {time.monotonic() - self.started:.0f} s", soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _state(self, ledger: Ledger) -> str:
        parts = [f"best {self._value(ledger.best)}"] if ledger.best else []
        parts += [f"{ledger.counts[status]} {status}" for status in ("stopped", "failed") if ledger.counts[status]]
        return ", ".join(parts) or "training"

    def _value(self, record: TrialRecord) -> str:
        value = record.metrics.get(self.objective.metric)
        return f"{self.objective.metric} {value:.4g}" if value is not None else ""
