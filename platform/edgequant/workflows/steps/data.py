"""What goes into a workflow: training text by name, evaluation data where they are, both logged as data-set inputs."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError
from edgequant.workflows.steps.text_mix import parse_mix

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import DataSet, EvaluationData, Rows

TEXTS = ("disaster", "disaster-multilingual", "wikitext-2")
SELF_GENERATED = "self-generated"


def check_dataset(dataset: str, *, self_generated: bool = False) -> None:
    """Refuse a training text that is neither a name nor a path nor a mix of them, before anything is loaded.

    Args:
        self_generated: whether text that the model itself writes will do.

    Raises:
        UserError: names the value and the ones that work.
    """
    for part in parse_mix(dataset):
        _check_one(part.name, self_generated)


def check_guard(guard: str, dataset: str) -> None:
    """Refuse a guard text that does not exist, or that is trained on.

    Raises:
        UserError: names both.
    """
    check_dataset(guard, self_generated=True)
    if guard != SELF_GENERATED and guard in {part.name for part in parse_mix(dataset)}:
        raise UserError(f"guard must be a text that is not trained on, got {guard!r}, which dataset {dataset!r} holds")


def _check_one(dataset: str, self_generated: bool) -> None:
    if dataset == SELF_GENERATED:
        if self_generated:
            return
        raise UserError(
            "dataset self-generated is what the model itself writes: qat, ptq and tune of qat can use it, fine-tuning "
            f"would learn from it what the model knows; name one of {', '.join(TEXTS)}, or a file or folder"
        )
    if dataset not in TEXTS and not Path(dataset).exists():
        renamed = f"; 'generated' is now called {SELF_GENERATED}" if dataset == "generated" else ""
        raise UserError(f"dataset must be one of {', '.join(TEXTS)}, a file or a folder, got {dataset!r}{renamed}")


def training_texts(dataset: str, data_dir: str | None) -> list[str]:
    """Texts to train or calibrate on; never a split that is evaluated on.

    Args:
        dataset: `disaster` (the bundled corpus's English train split), `disaster-multilingual` (with Sinhala and
            Tamil), `wikitext-2` (train split, else validation, from local files or the hub), a data set written by
            `edgequant corpus`, or a folder or file of Markdown or plain text.

    Raises:
        UserError: nothing readable is there.
    """
    from edgequant.corpora.benchmarks import load_wikitext2
    from edgequant.corpora.disaster.corpus import bundled_documents

    _check_one(dataset, self_generated=False)
    if dataset in ("disaster", "disaster-multilingual"):
        documents = bundled_documents("train")
        return [document.text for document in documents if document.language == "en" or dataset != "disaster"]
    if dataset == "wikitext-2":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ["".join(load_wikitext2(_wikitext_split(data_dir), data_dir))]
    return _texts_in(Path(dataset))


def _texts_in(path: Path) -> list[str]:
    if (path / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        return list(load_from_disk(str(path))["train"]["text"])
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".md", ".txt"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    if not any(text.strip() for text in texts):
        raise UserError(
            f"dataset must hold .md or .txt files, or be a folder made by `edgequant corpus`, got {str(path)!r} "
            "without text"
        )
    return texts


def evaluation_data(tasks: Sequence[str], data_dir: str | None) -> EvaluationData:
    """What the tasks are scored on and is there: bundled documents and questions always, benchmarks where found.

    Benchmarks are left out unless `data_dir` (or $EDGEQUANT_DATA) holds their files, so that a run without network
    neither waits nor fails. Each set is logged as an input of the active run.

    Raises:
        UserError: a benchmark file is damaged or of another version.
    """
    from edgequant.evaluation.tasks.registry import find_task

    wanted = {data_set.name: data_set for name in tasks for data_set in find_task(name).data}
    found = {name: rows_of(data_set, data_set.report, data_dir) for name, data_set in wanted.items()}
    data = {name: rows for name, rows in found.items() if rows is not None}
    _log_inputs(data, data_dir)
    return data


def rows_of(data_set: DataSet, split: str, data_dir: str | None) -> Rows | None:
    """A split's rows; None where they are not there. Of what is bundled, questions have no splits."""
    if data_set.load is not None:
        return data_set.load(split, data_dir or os.environ.get("EDGEQUANT_DATA"))
    return (_official_rows if is_official(data_set) else _bundled_rows)(data_set.name, split, data_dir)


def is_official(data_set: DataSet) -> bool:
    from edgequant.corpora.benchmarks import BENCHMARKS

    return data_set.load is None and data_set.name in BENCHMARKS


def _official_rows(name: str, split: str, data_dir: str | None) -> Rows | None:
    from edgequant.corpora import benchmarks

    if benchmarks.find_local(name, split, data_dir) is None:
        return None
    load: Any = {"wikitext2": benchmarks.load_wikitext2, "boolq": benchmarks.load_boolq, "squad": benchmarks.load_squad}
    return list(load[name](split, data_dir))


def _bundled_rows(name: str, split: str, data_dir: str | None) -> Rows:
    from edgequant.corpora.disaster.corpus import boolean_questions, bundled_documents, span_questions

    if name == "domain":
        return [(document.domain, document.text) for document in bundled_documents(split) if document.language == "en"]
    questions = {"domain_boolean": boolean_questions, "domain_span": span_questions}
    if name not in questions:
        raise UserError(f"data set {name!r} is not one of edgequant's: its DataSet must have a load function")
    return questions[name]()


def selection_rows(name: str, reported: Rows, dataset: str, data_dir: str | None) -> Rows | None:
    """What a search may score its trials on in place of the reported rows; None where there is nothing.

    Args:
        name: of a data set.
        reported: its reported rows, for a data set that has no others.
        dataset: what the trials are trained on: a split of it is not scored on.
    """
    from edgequant.evaluation.tasks.registry import find_data_set

    data_set = find_data_set(name)
    for split in data_set.select or (data_set.report,):
        if split == data_set.report:
            return reported
        if (name, split) not in _trained_on(dataset, data_dir):
            rows = rows_of(data_set, split, data_dir)
            if rows is not None:
                return rows
    return None


def _trained_on(dataset: str, data_dir: str | None) -> set[tuple[str, str]]:
    """Data sets and splits that are evaluated on elsewhere and that a training text is made of."""
    named = {part.name for part in parse_mix(dataset)}
    return {("wikitext2", _wikitext_split(data_dir))} if "wikitext-2" in named else set()


def _wikitext_split(data_dir: str | None) -> str:
    from edgequant.corpora.benchmarks import find_local

    return "train" if find_local("wikitext2", "train", data_dir) else "validation"


def _log_inputs(data: EvaluationData, data_dir: str | None) -> None:
    from edgequant.files import sha256_of_bytes
    from edgequant.tracking.logging import log_dataset

    for name, rows in data.items():
        if rows is not None:
            digest = sha256_of_bytes(json.dumps(rows, sort_keys=True))
            log_dataset(name, digest, _origin(name, data_dir), rows=len(rows), context="evaluation")


def _origin(name: str, data_dir: str | None) -> str:
    from edgequant.evaluation.tasks.registry import find_data_set

    data_set = find_data_set(name)
    if data_set.load is not None:
        return data_set.load.__module__
    return str(data_dir or os.environ.get("EDGEQUANT_DATA")) if is_official(data_set) else "bundled"
