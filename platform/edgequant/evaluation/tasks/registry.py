"""All tasks: edgequant's own, those of installed packages, those that a script adds. Light: no torch, no numpy."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache

from edgequant import extensions
from edgequant.errors import UserError
from edgequant.evaluation.tasks.boolq import BOOLQ
from edgequant.evaluation.tasks.closed_book import CLOSED_BOOK
from edgequant.evaluation.tasks.domain_perplexity import DOMAIN_PERPLEXITY
from edgequant.evaluation.tasks.domain_qa import DOMAIN_QA
from edgequant.evaluation.tasks.energy import ENERGY
from edgequant.evaluation.tasks.guard import GUARD
from edgequant.evaluation.tasks.latency import LATENCY
from edgequant.evaluation.tasks.perplexity import PERPLEXITY
from edgequant.evaluation.tasks.squad import SQUAD
from edgequant.evaluation.tasks.task import DataSet, Paired, Task

# In the order in which people compare: reports and tables keep it.
TASKS: tuple[Task, ...] = (DOMAIN_PERPLEXITY, PERPLEXITY, GUARD, BOOLQ, SQUAD, DOMAIN_QA, CLOSED_BOOK, LATENCY, ENERGY)
DEFAULT_TASKS = tuple(task.name for task in TASKS if task.by_default)
COMPARISON_TASKS = tuple(task.name for task in TASKS if task.comparison and task.by_default)
QUALITY_TASKS = tuple(name for name in COMPARISON_TASKS if name in {t.name for t in TASKS if t.kind == "quality"})


_of_this_process: dict[str, Task] = {}


def known_tasks() -> tuple[Task, ...]:
    """TASKS, what other packages add, and what `add_task` was given.

    Raises:
        UserError: another package's task cannot be loaded, or takes a name that is taken.
    """
    return (*_installed_tasks(), *_of_this_process.values())


def add_task(task: Task) -> None:
    """Make a task known to this process by its name, as if a package brought it: to evaluations, reports and messages.

    Other processes, such as the trials of a search, do not know it: there an installed package has to register it under
    the entry point `edgequant.tasks`. A task that was added before under the same name is replaced, so that a
    notebook's cell may be run again.

    Example:
        add_task(Task(name="cloze", score=score, data=(ROWS,), protocol="The likelier of two endings.", display={}))
        edgequant.evaluate(model, tokenizer, tasks=["cloze"]).metrics["cloze/accuracy"]

    Raises:
        UserError: not a `Task`, or one whose name, metrics' group or data set is another task's.
    """
    if not isinstance(task, Task):
        raise UserError(f"add_task must be given a Task, got {type(task).__name__}")
    _refuse_taken_names(task, [other for other in known_tasks() if _of_this_process.get(task.name) is not other])
    _of_this_process[task.name] = task


@cache
def _installed_tasks() -> tuple[Task, ...]:
    added = extensions.extensions(extensions.TASKS, Task)
    for place, task in enumerate(added):
        _refuse_taken_names(task, (*TASKS, *added[:place]))
    return (*TASKS, *added)


def _refuse_taken_names(task: Task, others: Sequence[Task]) -> None:
    sets = {data_set.name: data_set for other in others for data_set in other.data}
    for other in others:
        if other.name == task.name or other.group == task.group:
            raise UserError(
                f"task {task.name} (metrics {task.group}/...) must have names of its own, got {other.name}'s"
            )
    for data_set in task.data:
        if sets.get(data_set.name, data_set) != data_set:
            raise UserError(f"task {task.name}: data set {data_set.name!r} must have a name of its own, got another's")


def find_task(name: str) -> Task:
    """The task of a name; other packages are only looked at where it is not one of TASKS.

    Raises:
        UserError: nobody knows it; names those that are known.
    """
    for tasks in (lambda: TASKS, known_tasks):
        if found := next((task for task in tasks() if task.name == name), None):
            return found
    names = [task.name for task in known_tasks()]
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"evaluation.tasks: {name!r} is unknown.{hint} There are: {', '.join(names)}")


def owner_of(metric: str) -> Task | None:
    """The task whose metric this is, by its name; None for size, training and the like, which are no task's."""
    for tasks in (lambda: TASKS, known_tasks):
        if found := next((task for task in tasks() if task.owns(metric)), None):
            return found
    return None


def paired_metrics() -> tuple[Paired, ...]:
    """How two models are compared item by item, over all known tasks."""
    return tuple(paired for task in known_tasks() for paired in task.paired)


def find_data_set(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        UserError: no task knows it.
    """
    for tasks in (lambda: TASKS, known_tasks):
        for data_set in (data_set for task in tasks() for data_set in task.data):
            if data_set.name == name:
                return data_set
    names = dict.fromkeys(data_set.name for task in known_tasks() for data_set in task.data)
    raise UserError(f"data set {name!r} is not one of a task; there are: {', '.join(names)}")
