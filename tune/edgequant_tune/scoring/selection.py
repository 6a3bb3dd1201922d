"""What a search chooses by, and what it reports: never the same rows.

A search that looked at the reported rows would choose what fits them by chance. So trials are scored on another split
where a data set has one that is not trained on, and else on one half of the reported rows; results are measured on the
other half then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgequant.errors import UserError
from edgequant.evaluation.tasks.halves import halves
from edgequant.evaluation.tasks.registry import find_data_set, find_task
from edgequant.workflows.steps.data import rows_of, trained_on

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import EvaluationData, Rows

HALF = "half"  # of the reported split, where a data set has no other


class Parts(NamedTuple):
    """What a search makes of a data set.

    Attributes:
        select: rows that trials are scored on; None: there are none.
        report: rows that results are measured on, none of them in `select`.
        split: what `select` is: a split by its name, or `half`.
    """

    select: Rows | None
    report: Rows
    split: str


def parts_of(name: str, reported: Rows, dataset: str, data_dir: str | None) -> Parts:
    """What a search scores its trials on and what it reports: two splits, or two halves of the reported one.

    Reported rows that cannot be halved, such as a text of one article, are not scored on.

    Args:
        name: of a data set.
        reported: its reported rows.
        dataset: what the trials are trained on: a split of it is not scored on.
    """
    data_set = find_data_set(name)
    for split in data_set.select or (data_set.report,):
        if split == data_set.report:
            half = halves(reported, data_set.units)
            return Parts(*half, HALF) if not reported or (half.select and half.report) else Parts(None, reported, "")
        if (name, split) not in trained_on(dataset, data_dir):
            rows = rows_of(data_set, split, data_dir)
            if rows is not None:
                return Parts(rows, reported, split)
    return Parts(None, reported, "")


def check_scored(tasks: Sequence[str], dataset: str, data_dir: str | None) -> None:
    """Refuse a search whose trials could not be scored: a task that has nothing but what is reported.

    Args:
        tasks: that trials are scored on.
        dataset: what the trials are trained on.

    Raises:
        UserError: names the task, the data set and what would do.
    """
    for task in tasks:
        sets = find_task(task).data
        reported = {each.name: rows_of(each, each.report, data_dir) for each in sets}
        there = {name: rows for name, rows in reported.items() if rows is not None}
        if there and all(parts_of(name, rows, dataset, data_dir).select is None for name, rows in there.items()):
            halved = any(each.report in (each.select or (each.report,)) for each in sets)
            why = ", and the reported ones are too few to be halved" if halved else ""
            raise UserError(
                f"task {task}, which an objective or a constraint asks for, has no rows of {', '.join(there)} to score "
                f"trials on: they must be neither trained on ({dataset}) nor what is reported{why}; give its "
                "validation split, or another objective"
            )


def told_splits(scored: Sequence[str], dataset: str, data_dir: str | None) -> str:
    """What trials are scored on, for the tag `edgequant.split`: `validation`, or a split for each data set.

    Args:
        scored: tasks that trials are scored on.
        dataset: what the trials are trained on.
    """
    names = dict.fromkeys(each.name for task in scored for each in find_task(task).data)
    found = {name: parts_of(name, [], dataset, data_dir).split for name in names}
    told = {name: split for name, split in found.items() if split}
    if len({*told.values()}) == 1:
        return next(iter(told.values()))
    return ", ".join(f"{name}: {split}" for name, split in told.items())


class Selection(NamedTuple):
    """Data of all tasks.

    Attributes:
        select: what trials are scored on.
        report: what results are measured on.
        splits: by data set, what `select` has of it: for the tag `edgequant.split`.
    """

    select: EvaluationData
    report: EvaluationData
    splits: dict[str, str]


def selection(data: EvaluationData, scored: Sequence[str], dataset: str, data_dir: str | None) -> Selection:
    """What trials are scored on and what is reported of them.

    Args:
        data: reported rows by data set.
        scored: tasks that trials are scored on; data of other tasks are reported whole.
        dataset: what the trials are trained on.
    """
    report = dict(data)
    select: dict[str, Rows | None] = {}
    splits: dict[str, str] = {}
    for name in dict.fromkeys(each.name for task in scored for each in find_task(task).data):
        if (rows := data.get(name)) is not None:
            parts = parts_of(name, rows, dataset, data_dir)
            report[name] = parts.report
            if parts.select is not None:
                select[name], splits[name] = parts.select, parts.split
    return Selection(select, report, splits)
