"""WikiText-2, BoolQ and SQuAD v1.1: the same rows from the hub or from local official files, each checked and known."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgequant.corpora.benchmark_rows import Conversions, boolq_rows, parse_json, questions_of, squad_rows
from edgequant.corpora.text.decoding import read_text, unified
from edgequant.errors import UserError
from edgequant.files import sha256_of_bytes


@dataclass(frozen=True)
class Benchmark:
    """Where a standard data set lives, how many rows each of its splits must have, and how the official one is known.

    Attributes:
        official: SHA-256 of a split's content, by split: of the official file as UTF-8 text with LF line ends, and of
            what is scored of it (`scored_content`), which other ways to write the same rows leave as it is.
    """

    name: str
    title: str
    hub_id: str
    hub_config: str | None
    files: dict[str, tuple[str, ...]]
    rows: dict[str, int]
    official: dict[str, tuple[str, ...]]


WIKITEXT2 = Benchmark(
    name="wikitext-2",
    title="WikiText-2",
    hub_id="Salesforce/wikitext",
    hub_config="wikitext-2-raw-v1",
    # The tokenised files stand in for missing raw ones where text is only trained on, never for the scored split.
    files={
        "train": ("wiki.train.raw", "wiki.train.tokens"),
        "validation": ("wiki.valid.raw", "wiki.valid.tokens"),
        "test": ("wiki.test.raw",),
    },
    rows={"train": 36_718, "validation": 3_760, "test": 4_358},
    official={
        "train": ("6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",),
        "validation": ("4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",),
        "test": ("173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",),
    },
)
BOOLQ = Benchmark(
    name="boolq",
    title="BoolQ",
    hub_id="google/boolq",
    hub_config=None,
    files={"train": ("train.jsonl",), "validation": ("dev.jsonl",)},
    rows={"train": 9_427, "validation": 3_270},
    official={
        "validation": (
            "ebc29ea3808c5c611672384b3de56e83349fe38fc1fe876fd29b674d81d0a80a",
            "59121c6e36535a4aa005b51286d3342a7d28d79173e6e8c9ed5e9e1e1f3ccfc9",
        ),
    },
)
SQUAD = Benchmark(
    name="squad",
    title="SQuAD v1.1",
    hub_id="rajpurkar/squad",
    hub_config=None,
    files={"train": ("train-v1.1.json",), "validation": ("dev-v1.1.json",)},
    rows={"train": 87_599, "validation": 10_570},
    official={
        "train": ("3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",),
        "validation": (
            "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
            "efa7ab4b9937c8de49820678608d2cdf80ee6484ec86af417f8cbca18feab72c",
        ),
    },
)
BENCHMARKS = {"wikitext2": WIKITEXT2, "wikitext-2": WIKITEXT2, "boolq": BOOLQ, "squad": SQUAD}
_SPLIT_ALIASES = {"valid": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Split:
    """A split's checked rows.

    Attributes:
        source: the file, or the hub's id.
        identity: "official BoolQ validation split", or "not the official file: ...".
        changes: what was converted or normalised on the way, a line each.
    """

    rows: list[Any]
    source: str
    identity: str
    changes: tuple[str, ...] = ()


def load_wikitext2(split: str, data_dir: str | Path | None = None) -> list[str]:
    """WikiText-2 raw, one row per line as on the hub: a line keeps its line end, a blank line is `''`.

    Where only the tokenised train or validation file is there, it is read instead, with `<unk>` left out and a warning.

    Raises:
        UserError: as `read_split`.
    """
    return _warned(read_split("wikitext2", split, data_dir))


def load_boolq(split: str, data_dir: str | Path | None = None) -> list[dict]:
    """BoolQ rows with `question`, `title`, `passage` (strings) and `answer` (bool).

    The hub's copy has no titles; there the title is `''`. What was converted is a warning.

    Raises:
        UserError: as `read_split`.
    """
    return _warned(read_split("boolq", split, data_dir))


def load_squad(split: str, data_dir: str | Path | None = None) -> list[dict]:
    """SQuAD v1.1 rows: `id`, `title`, `context`, `question`, `answers` {"text": [...], "answer_start": [...]}.

    What was converted is a warning.

    Raises:
        UserError: as `read_split`.
    """
    return _warned(read_split("squad", split, data_dir))


def _warned(split: Split) -> list[Any]:
    for change in split.changes:
        warnings.warn(f"{split.source}: {change}", stacklevel=3)
    return split.rows


def read_split(name: str, split: str, data_dir: str | Path | None = None) -> Split:
    """A split's rows with what they are: from the local file, else from the hub.

    Args:
        name: wikitext2, boolq or squad.
        split: train, validation or test.
        data_dir: Folder in the official layout; None reads the EDGEQUANT_DATA environment variable.

    Raises:
        UserError: unknown split, data not found, a wrong number of rows, a malformed file, or a column that holds
            something else than it must; names the file, the row, the column and the value.
    """
    benchmark = BENCHMARKS[name]
    split = _checked_split(benchmark, split)
    path = find_local(name, split, data_dir)
    if path is None:
        told = Conversions()
        rows = list(_checked(benchmark, _from_hub(benchmark, split, data_dir), told))
        known = _identity(benchmark, split, rows, "", benchmark.hub_id)
        return Split(_counted(benchmark, split, rows, benchmark.hub_id), benchmark.hub_id, known, told.lines())
    stamp = path.stat()
    found = _read_file(name, split, path, (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino))
    return Split(list(found.rows), found.source, found.identity, found.changes)


@lru_cache(maxsize=4)  # a run checks its data before it begins, and then uses them
def _read_file(name: str, split: str, path: Path, stamp: tuple[int, ...]) -> Split:
    """`stamp` tells a file from what it was before."""
    benchmark, told = BENCHMARKS[name], Conversions()
    text, changes = read_text(path)
    rows = list(_checked(benchmark, _values(benchmark, text, path), told))
    known = _identity(benchmark, split, rows, text, str(path))
    if path.suffix == ".tokens":
        known = f"{benchmark.title} {split} split, tokenised"
        rows = [row.replace(" <unk>", "") for row in rows]
        changes = (*changes, "tokenised text; <unk> left out, for training only")
    return Split(_counted(benchmark, split, rows, str(path)), str(path), known, (*changes, *told.lines()))


def as_in_the_file(rows: Sequence[str]) -> str:
    """WikiText's rows as one text, with the official file's own characters, its blank lines too."""
    return "".join(row or " \n" for row in rows)


def scored_content(benchmark: Benchmark, rows: list[Any]) -> str:
    """What scores depend on, as one text: WikiText's own characters, else the columns that are read as compact JSON."""
    if benchmark is WIKITEXT2:
        return as_in_the_file(rows)
    if benchmark is BOOLQ:
        columns: list[list[Any]] = [[row["question"], row["passage"], row["answer"]] for row in rows]
    else:
        names = ("id", "title", "context", "question")
        columns = [[*(row[name] for name in names), row["answers"]["text"]] for row in rows]
    return json.dumps(columns, ensure_ascii=False, separators=(",", ":"))


def find_local(name: str, split: str, data_dir: str | Path | None = None) -> Path | None:
    """The local official file of a data set's split, or None. Arguments as `read_split`."""
    benchmark = BENCHMARKS[name]
    root = data_folder(data_dir)
    if root is None:
        return None
    folder = root / benchmark.name
    files = benchmark.files[_checked_split(benchmark, split)]
    return next((folder / file for file in files if (folder / file).is_file()), None)


def data_folder(data_dir: str | Path | None) -> Path | None:
    """The data folder that is named by the option, else by the EDGEQUANT_DATA environment variable; None where none is.

    Raises:
        UserError: it is named and is no folder.
    """
    root = os.environ.get("EDGEQUANT_DATA") or None if data_dir is None else str(data_dir)
    if root is None:
        return None
    folder = Path(root).expanduser()
    if not root.strip() or not folder.is_dir():
        option, undo = ("data_dir", "leave it out") if data_dir is not None else ("$EDGEQUANT_DATA", "unset it")
        why = "a file" if folder.is_file() else "not found"
        raise UserError(
            f"{option} must be a folder with wikitext-2/, boolq/ and squad/ in their official formats, got {root!r}: "
            f"{why}; correct it, or {undo} to measure without these benchmarks"
        )
    return folder


def _checked_split(benchmark: Benchmark, split: str) -> str:
    split = _SPLIT_ALIASES.get(split, split)
    if split not in benchmark.files:
        raise UserError(f"split of {benchmark.name} must be one of {', '.join(benchmark.files)}, got {split!r}")
    return split


def _from_hub(benchmark: Benchmark, split: str, data_dir: str | Path | None) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        rows = list(datasets.load_dataset(benchmark.hub_id, benchmark.hub_config, split=split))
    except Exception as error:  # the hub client raises a dozen types for "not reachable"
        root = data_folder(data_dir)
        looked = (
            f"in {root / benchmark.name}" if root else "in no local folder (neither data_dir nor EDGEQUANT_DATA is set)"
        )
        raise UserError(
            f"{benchmark.name} ({split}) not found: the hub data set {benchmark.hub_id} could not be loaded "
            f"({type(error).__name__}), and {' or '.join(benchmark.files[split])} was looked for {looked}. "
            f"Put the official file into DATA/{benchmark.name}/ and pass --data_dir DATA, or connect to the hub."
        ) from error
    for number, row in enumerate(rows):
        yield f"{benchmark.hub_id}, row {number}", row["text"] if benchmark is WIKITEXT2 else row


def _values(benchmark: Benchmark, text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """What stands in a file, row by row, with its place."""
    if benchmark is SQUAD:
        yield from questions_of(parse_json(text, str(path)), str(path))
        return
    lines = text.split("\n")
    for number, line in enumerate(lines[: len(lines) - (lines[-1] == "")], 1):
        where = f"{path}, line {number}"
        if benchmark is WIKITEXT2:
            yield where, line + "\n" if line.strip() else ""
        elif line.strip():
            yield where, parse_json(line, where)


def _checked(benchmark: Benchmark, values: Iterator[tuple[str, Any]], told: Conversions) -> Iterator[Any]:
    if benchmark is WIKITEXT2:
        return (unified(text) for _, text in values)
    return (boolq_rows if benchmark is BOOLQ else squad_rows)(values, told)


def _counted(benchmark: Benchmark, split: str, rows: list, source: str) -> list:
    if len(rows) != benchmark.rows[split]:
        raise UserError(
            f"{source}: {benchmark.name} {split} has {len(rows):,} rows, "
            f"the official one {benchmark.rows[split]:,}; the file is incomplete or another version"
        )
    return rows


def _identity(benchmark: Benchmark, split: str, rows: list, text: str, source: str) -> str:
    named = f"{benchmark.title} {split} split"
    if split not in benchmark.official:
        return f"{named}, of which no official SHA-256 is known"
    digests = {sha256_of_bytes(text), sha256_of_bytes(scored_content(benchmark, rows))}
    if digests & {*benchmark.official[split]}:
        return f"official {named}"
    return f"not the official file: {source} differs from the official {named}"
