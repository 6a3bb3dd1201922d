"""Everything that decides what an evaluation measures and how. Light: imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill
from typing import Any

from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.tasks.registry import DEFAULT_TASKS, find_task, known_tasks


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(ScoringSettings):
    """What is measured, and how; two evaluations with equal settings are comparable.

    Raises:
        UserError: a task that nobody knows, or a value that none can work with, before anything is loaded.
    """

    tasks: tuple[str, ...] = DEFAULT_TASKS
    """What to measure, listed below; what is named must have its data. Size is always measured."""

    cache_dir: str | None = None
    """Folder of scored items, so that an interrupted evaluation resumes and a repeated one is read; None keeps none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.tasks:
            find_task(name)

    @staticmethod
    def help_epilogue() -> str:
        """Every known task with its protocol, as `--help` shows it below the options."""
        indented: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": " " * 6, "break_on_hyphens": False}
        lines = [fill(f"{task.name}: {task.protocol}", 100, **indented) for task in known_tasks()]
        return "\n".join(["evaluation.tasks:", *lines])
