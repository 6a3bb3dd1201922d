"""What goes into a workflow: training text by name, evaluation data where they are, both logged as data-set inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgequant.corpora.benchmarks import (
    BENCHMARKS,
    WIKITEXT2,
    Split,
    as_in_the_file,
    data_folder,
    find_local,
    read_split,
)
from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import rows_digest
from edgequant.evaluation.tasks.guard import GUARD
from edgequant.evaluation.tasks.registry import (
    COMPARISON_TASKS,
    DEFAULT_TASKS,
    QUALITY_TASKS,
    find_data_set,
    find_task,
)
from edgequant.workflows.steps.text_mix import (
    NAMED,
    SELF_GENERATED,
    check_one,
    instruction_pairs,
    is_instructions,
    parse_mix,
)

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import DataSet, EvaluationData, Rows, Task

UNASKED = ({*DEFAULT_TASKS}, {*COMPARISON_TASKS}, {*QUALITY_TASKS})  # what workflows measure by default


def training_texts(dataset: str, data_dir: str | None) -> list[str]:
    """Texts to train or calibrate on; never a split that is evaluated on.

    Args:
        dataset: `disaster` (the bundled corpus's English train split), `disaster-multilingual` (with Sinhala and
            Tamil), `wikitext-2` (train split, else validation, from local files or the hub), a data set written by
            `edgequant corpus`, or a folder or file of Markdown or plain text.

    Raises:
        UserError: nothing readable is there.
    """
    return _texts_and_remarks(dataset, data_dir, "dataset")[0]


def _texts_and_remarks(dataset: str, data_dir: str | None, option: str) -> tuple[list[str], list[str]]:
    from edgequant.corpora.disaster.corpus import bundled_documents
    from edgequant.corpora.training_files import read_training_files

    check_one(dataset, self_generated=False)
    if is_instructions(dataset):
        return [pair.text for pair in instruction_pairs(dataset, option)], []
    if dataset in ("disaster", "disaster-multilingual"):
        documents = bundled_documents("train")
        return [document.text for document in documents if document.language == "en" or dataset != "disaster"], []
    if dataset == "wikitext-2":
        split = read_split("wikitext2", _wikitext_split(data_dir), data_dir)
        return [as_in_the_file(split.rows)], [f"{option} wikitext-2: {line}" for line in _told(split)]
    texts, remarks = read_training_files(dataset, option)
    return texts, [f"{option} {remark}" for remark in remarks]


def check_data(
    tasks: Sequence[str],
    data_dir: str | None,
    *,
    needed: Sequence[str] = (),
    apart: Sequence[str] = (),
    **texts: str | None,
) -> list[str]:
    """Refuse data that are named and are not there or not what they should be, before a run exists; says what they are.

    What a user names is needed: a data folder must exist and hold what the tasks need, and a task that is named one by
    one must have its data. Only tasks that are measured unasked are left out, and only where no data folder is named.

    Args:
        needed: further tasks, which cannot be left out.
        apart: tasks whose data the workflow makes itself.
        texts: training texts by the option that names them, as `training_texts` takes them, mixes included.

    Returns:
        Lines to stand under the table of results: what was not measured, and why.

    Raises:
        UserError: names the folder or file, what was looked for and what is there, or the row, column and value.
    """
    found = _rows_of_tasks(list(dict.fromkeys([*tasks, *needed])), data_dir)
    absent = [name for name in [*needed, *tasks] if _lacks_data(find_task(name), found) and name not in apart]
    if GUARD.name in absent:
        raise UserError(
            "task guard is measured by qat alone, which sets its text apart; leave it out of evaluation.tasks"
        )
    if absent and (absent[0] in needed or {*tasks} not in UNASKED):
        raise UserError(
            f"task {absent[0]} is asked for and needs {_files_of(absent[0])}, and no data folder is named; "
            "pass --data_dir DATA or set EDGEQUANT_DATA, or leave the task out"
        )
    lines = [line for name, rows in found.items() if rows is not None for line in _told_of(name, data_dir)]
    for option, dataset in texts.items():
        for part in parse_mix(dataset) if dataset else ():
            lines += _remarks_on_text(part.name, data_dir, option)
    for line in lines:
        print(line, flush=True)
    return [f"not measured, because no data_dir: {', '.join(absent)}; pass --data_dir DATA"] if absent else []


def _remarks_on_text(dataset: str, data_dir: str | None, option: str) -> list[str]:
    if dataset == SELF_GENERATED:
        return []
    folder = data_folder(data_dir)
    if dataset == "wikitext-2" and folder and not find_local("wikitext2", _wikitext_split(data_dir), data_dir):
        files = (*WIKITEXT2.files["train"], *WIKITEXT2.files["validation"])
        raise UserError(_lacking(folder, f"{option} wikitext-2", WIKITEXT2.name, files))
    return _texts_and_remarks(dataset, data_dir, option)[1]


def _told_of(name: str, data_dir: str | None) -> list[str]:
    """What a benchmark's reported rows are, a line each; nothing of other data sets."""
    data_set = find_data_set(name)
    if not is_official(data_set):
        return []
    return [f"{name}: {line}" for line in _told(read_split(name, data_set.report, data_dir))]


def _told(split: Split) -> list[str]:
    """What a split is and what was changed in it, a line each."""
    is_named = split.source in split.identity
    return [split.identity if is_named else f"{split.identity} ({split.source})", *split.changes]


def evaluation_data(tasks: Sequence[str], data_dir: str | None, dataset: str | None = None) -> EvaluationData:
    """What the tasks are scored on and is there: bundled documents and questions always, benchmarks where found.

    Benchmarks are left out where neither `data_dir` nor $EDGEQUANT_DATA is set, so that a run without network neither
    waits nor fails. Each set is logged as an input of the active run.

    Args:
        dataset: that is trained or calibrated on, as `training_texts`, or a mix: where it has a test split of its own,
            that is the domain text, in all of its languages; bundled English documents otherwise. Bundled questions
            are in the languages that are trained on.

    Raises:
        UserError: a folder is named that does not exist or lacks what a task needs, or a benchmark file is damaged or
            of another version.
    """
    data = {name: rows for name, rows in _rows_of_tasks(tasks, data_dir).items() if rows is not None}
    if "domain" in data and (own := domain_rows(dataset)):
        data["domain"] = own
    data |= {name: rows for name, rows in further_questions(dataset).items() if name in data}
    _log_inputs(data, data_dir)
    return data


def domain_rows(dataset: str | None, split: str = "test") -> Rows:
    """A data set's own documents of a split, as (domain, text) each; empty where it has no such split.

    Args:
        dataset: by name or path, or a mix, whose parts are asked one by one.
    """
    from edgequant.corpora.disaster.corpus import bundled_documents
    from edgequant.corpora.training_files import split_documents

    rows: list[tuple[str, str]] = []
    for name in [part.name for part in parse_mix(dataset)] if dataset else ():
        if name == "disaster-multilingual":
            rows += [(document.domain, document.text) for document in bundled_documents(split)]
        elif name not in NAMED:
            rows += split_documents(name, split)
    return rows


def further_questions(dataset: str | None) -> dict[str, Rows]:
    """Bundled questions by data set, in all languages that are trained on, where these are more than English."""
    from edgequant.corpora.disaster.corpus import LANGUAGES

    if not dataset or "disaster-multilingual" not in {part.name for part in parse_mix(dataset)}:
        return {}
    return {name: [row for each in LANGUAGES for row in rows(each)] for name, rows in _questions().items()}


def _rows_of_tasks(tasks: Sequence[str], data_dir: str | None) -> dict[str, Rows | None]:
    """Rows by data set; where a data folder is named, it holds what every task needs."""
    folder = data_folder(data_dir)
    wanted = {data_set.name: data_set for name in tasks for data_set in find_task(name).data}
    found = {name: rows_of(data_set, data_set.report, data_dir) for name, data_set in wanted.items()}
    lacking = [task for task in map(find_task, tasks) if _lacks_data(task, found) and task is not GUARD]
    if folder is not None and lacking:
        task = lacking[0]
        data_set, rest = task.data[0], [name for name in tasks if name not in {each.name for each in lacking}]
        if not is_official(data_set):
            raise UserError(f"data_dir {str(folder)!r} lacks the data of task {task.name}; leave the task out")
        benchmark = BENCHMARKS[data_set.name]
        without = f"; or measure without: --evaluation.tasks '[{','.join(rest)}]'" if rest else ""
        why = f"task {task.name}"
        raise UserError(_lacking(folder, why, benchmark.name, benchmark.files[data_set.report]) + without)
    return found


def _lacks_data(task: Task, found: Mapping[str, Rows | None]) -> bool:
    return bool(task.data) and all(found[data_set.name] is None for data_set in task.data)


def _files_of(task: str) -> str:
    data_set = find_task(task).data[0]
    if not is_official(data_set):
        return f"its data set {data_set.name}"
    benchmark = BENCHMARKS[data_set.name]
    return " or ".join(f"{benchmark.name}/{file}" for file in benchmark.files[data_set.report])


def _lacking(folder: Path, why: str, name: str, files: Sequence[str]) -> str:
    """What is needed of a data folder, and what is there instead."""
    inner = folder / name
    there = sorted(map(_as_listed, (inner if inner.is_dir() else folder).iterdir()))
    listed = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") or "nothing"
    return (
        f"data_dir must hold {name}/{' or '.join(files)}, which {why} needs, got {listed} in "
        f"{str(inner if inner.is_dir() else folder)!r}; put the official file there"
    )


def _as_listed(entry: Path) -> str:
    """Its name, and what it is where that is no file: a link to nothing looks like the file that is needed."""
    if entry.is_dir():
        return f"{entry.name}/"
    if entry.is_file():
        return entry.name
    return f"{entry.name} ({'a link to nothing' if entry.is_symlink() else 'a pipe or device'})"


def rows_of(data_set: DataSet, split: str, data_dir: str | None) -> Rows | None:
    """A split's rows; None where they are not there. Of what is bundled, questions have no splits."""
    if data_set.load is not None:
        return data_set.load(split, data_dir or os.environ.get("EDGEQUANT_DATA"))
    if not is_official(data_set):
        return _bundled_rows(data_set.name, split)
    return read_split(data_set.name, split, data_dir).rows if find_local(data_set.name, split, data_dir) else None


def is_official(data_set: DataSet) -> bool:
    """Whether it is one of the benchmarks, read from official files."""
    return data_set.load is None and data_set.name in BENCHMARKS


def _bundled_rows(name: str, split: str) -> Rows:
    from edgequant.corpora.disaster.corpus import bundled_documents

    if name == "domain":
        return [(document.domain, document.text) for document in bundled_documents(split) if document.language == "en"]
    if name not in (questions := _questions()):
        raise UserError(f"data set {name!r} is not one of edgequant's: its DataSet must have a load function")
    return questions[name]("en")


def _questions() -> dict[str, Callable[[str], Rows]]:
    """By data set, the bundled questions in a language."""
    from edgequant.corpora.disaster.corpus import boolean_questions, closed_book_questions, span_questions

    return {"domain_boolean": boolean_questions, "domain_span": span_questions, "closed_book": closed_book_questions}


def trained_on(dataset: str, data_dir: str | None) -> set[tuple[str, str]]:
    """Data sets and splits that are evaluated on elsewhere and that a training text is made of."""
    named = {part.name for part in parse_mix(dataset)}
    return {("wikitext2", _wikitext_split(data_dir))} if "wikitext-2" in named else set()


def _wikitext_split(data_dir: str | None) -> str:
    return "train" if find_local("wikitext2", "train", data_dir) else "validation"


def _log_inputs(data: EvaluationData, data_dir: str | None) -> None:
    from edgequant.tracking.logging import log_dataset

    for name, rows in data.items():
        if rows is not None:
            log_dataset(name, rows_digest(rows), _origin(name, data_dir), rows=len(rows), context="evaluation")


def _origin(name: str, data_dir: str | None) -> str:
    data_set = find_data_set(name)
    if data_set.load is not None:
        return data_set.load.__module__
    return _told(read_split(name, data_set.report, data_dir))[0] if is_official(data_set) else "bundled"
