"""WikiText-2, BoolQ and SQuAD v1.1: the same rows from the hub or from local official files, counts checked."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgequant.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """Where a standard data set lives and how many rows each of its splits must have."""

    name: str
    hub_id: str
    hub_config: str | None
    files: dict[str, tuple[str, ...]]
    rows: dict[str, int]


WIKITEXT2 = Benchmark(
    name="wikitext-2",
    hub_id="Salesforce/wikitext",
    hub_config="wikitext-2-raw-v1",
    # The tokenised files stand in for missing raw ones where text is only trained on, never for the scored split.
    files={
        "train": ("wiki.train.raw", "wiki.train.tokens"),
        "validation": ("wiki.valid.raw", "wiki.valid.tokens"),
        "test": ("wiki.test.raw",),
    },
    rows={"train": 36_718, "validation": 3_760, "test": 4_358},
)
BOOLQ = Benchmark(
    name="boolq",
    hub_id="google/boolq",
    hub_config=None,
    files={"train": ("train.jsonl",), "validation": ("dev.jsonl",)},
    rows={"train": 9_427, "validation": 3_270},
)
SQUAD = Benchmark(
    name="squad",
    hub_id="rajpurkar/squad",
    hub_config=None,
    files={"train": ("train-v1.1.json",), "validation": ("dev-v1.1.json",)},
    rows={"train": 87_599, "validation": 10_570},
)
BENCHMARKS = {"wikitext2": WIKITEXT2, "wikitext-2": WIKITEXT2, "boolq": BOOLQ, "squad": SQUAD}
_SPLIT_ALIASES = {"valid": "validation", "dev": "validation"}


def load_wikitext2(split: str, data_dir: str | Path | None = None) -> list[str]:
    """WikiText-2 raw, one row per line as on the hub: a line keeps its line end, a blank line is `''`.

    Where only the tokenised train or validation file is there, it is read instead, with `<unk>` left out and a warning.

    Raises:
        UserError: unknown split, data not found, or a wrong number of rows.
    """
    split = _checked_split(WIKITEXT2, split)
    path = find_local("wikitext2", split, data_dir)
    if path is None:
        rows = [row["text"] for row in _from_hub(WIKITEXT2, split, data_dir)]
    else:
        lines = _read(path).split("\n")
        rows = [line + "\n" if line.strip() else "" for line in lines[: len(lines) - (lines[-1] == "")]]
        if path.suffix == ".tokens":
            warnings.warn(f"{path.name} is tokenised text; <unk> left out, for training only", stacklevel=2)
            rows = [row.replace(" <unk>", "") for row in rows]
    return _checked_rows(WIKITEXT2, split, rows, path)


def load_boolq(split: str, data_dir: str | Path | None = None) -> list[dict]:
    """BoolQ rows with `question`, `title`, `passage` (strings) and `answer` (bool).

    The hub's copy has no titles; there the title is `''`.

    Raises:
        UserError: unknown split, data not found, a wrong number of rows, or a malformed line.
    """
    split = _checked_split(BOOLQ, split)
    path = find_local("boolq", split, data_dir)
    if path is None:
        rows = [{"title": "", **row} for row in _from_hub(BOOLQ, split, data_dir)]
    else:
        rows = [_json(line, path) for line in _read(path).split("\n") if line.strip()]
    try:
        rows = [{key: row[key] for key in ("question", "title", "passage", "answer")} for row in rows]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path or BOOLQ.hub_id}: {error} not found in a BoolQ row; use the official file") from None
    return _checked_rows(BOOLQ, split, rows, path)


def load_squad(split: str, data_dir: str | Path | None = None) -> list[dict]:
    """SQuAD v1.1 rows: `id`, `title`, `context`, `question`, `answers` {"text": [...], "answer_start": [...]}.

    Raises:
        UserError: unknown split, data not found, a wrong number of rows, or a malformed file.
    """
    split = _checked_split(SQUAD, split)
    path = find_local("squad", split, data_dir)
    if path is None:
        return _checked_rows(SQUAD, split, list(_from_hub(SQUAD, split, data_dir)), path)
    try:
        rows = list(_flatten_squad(_json(_read(path), path)["data"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a SQuAD v1.1 file: {error} is missing or of the wrong type") from None
    return _checked_rows(SQUAD, split, rows, path)


def find_local(name: str, split: str, data_dir: str | Path | None = None) -> Path | None:
    """The local official file of a data set's split, or None.

    Args:
        name: wikitext2, boolq or squad.
        split: train, validation or test.
        data_dir: Folder in the official layout; None reads the EDGEQUANT_DATA environment variable.
    """
    benchmark = BENCHMARKS[name]
    folder = _local_folder(benchmark, data_dir)
    if folder is None:
        return None
    files = benchmark.files[_checked_split(benchmark, split)]
    return next((folder / file for file in files if (folder / file).is_file()), None)


def _local_folder(benchmark: Benchmark, data_dir: str | Path | None) -> Path | None:
    root = data_dir or os.environ.get("EDGEQUANT_DATA")
    return Path(root) / benchmark.name if root else None


def _checked_split(benchmark: Benchmark, split: str) -> str:
    split = _SPLIT_ALIASES.get(split, split)
    if split not in benchmark.files:
        raise UserError(f"split of {benchmark.name} must be one of {', '.join(benchmark.files)}, got {split!r}")
    return split


def _from_hub(benchmark: Benchmark, split: str, data_dir: str | Path | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(benchmark.hub_id, benchmark.hub_config, split=split)
    except Exception as error:  # the hub client raises a dozen types for "not reachable"
        folder = _local_folder(benchmark, data_dir)
        looked = f"in {folder}" if folder else "in no local folder (neither data_dir nor EDGEQUANT_DATA is set)"
        raise UserError(
            f"{benchmark.name} ({split}) not found: the hub data set {benchmark.hub_id} could not be loaded "
            f"({type(error).__name__}), and {' or '.join(benchmark.files[split])} was looked for {looked}. "
            f"Put the official file into DATA/{benchmark.name}/ and pass --data_dir DATA, or connect to the hub."
        ) from error


def _checked_rows(benchmark: Benchmark, split: str, rows: list, path: Path | None) -> list:
    if len(rows) != benchmark.rows[split]:
        raise UserError(
            f"{path or benchmark.hub_id}: {benchmark.name} {split} has {len(rows):,} rows, "
            f"the official one {benchmark.rows[split]:,}; the file is incomplete or another version"
        )
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); fetch the official file again") from None


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch the official file again") from None


def _flatten_squad(articles: list[dict]) -> Any:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question["answers"]
                yield {
                    "id": question["id"],
                    "title": article["title"],
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }
