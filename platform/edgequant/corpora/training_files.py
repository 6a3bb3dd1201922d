"""Texts to train or calibrate on from a user's file or folder: what was meant, or a refusal that says what is there."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgequant.corpora.extraction.extract import kind_of
from edgequant.corpora.extraction.extracted import ExtractionError
from edgequant.corpora.text.decoding import read_text, unified
from edgequant.errors import UserError
from edgequant.files import sha256_of
from edgequant.folders import CORPUS, made_here

_SUFFIXES = (".md", ".txt")
_NO_ROWS = "add documents that do not state another split, and make it again with `edgequant corpus`"


def read_training_files(path: str | Path, option: str = "dataset") -> tuple[list[str], list[str]]:
    """The texts of a file, of the .md and .txt files of a folder, or of the train split of a data set on disk.

    Args:
        option: that named it, for messages.

    Returns:
        Texts with LF line ends and without byte order marks, in the order of their names; and remarks: what was
        converted, and which files of the folder are none of these.

    Raises:
        UserError: no text in it, a file that is no UTF-8 text (a PDF, JSON, HTML page, ...), a damaged data set, or one
            whose column `text` does not hold text.
    """
    path, remarks = Path(path).expanduser(), list[str]()
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file() or _is_of_ours(path):
        texts = _saved_texts(path, option)
    elif path.is_dir():
        texts, remarks = _texts_of_folder(path, option)
    else:
        text, changes = _text_of_file(path, option)
        texts, remarks = [text], [f"{path}: {change}" for change in changes]
    if not any(character.isalnum() for text in texts for character in text):
        raise UserError(
            f"{option} must hold .md or .txt files, or be a folder made by `edgequant corpus`, got {str(path)!r} "
            "without text" + ("; " + "; ".join(remarks) if remarks else "")
        )
    return texts, remarks


def _texts_of_folder(folder: Path, option: str) -> tuple[list[str], list[str]]:
    files = [file for file in sorted(folder.rglob("*")) if not _is_hidden(file, folder) and not file.is_dir()]
    chosen = [file for file in files if file.suffix.lower() in _SUFFIXES]
    texts, remarks = [], []
    for file in chosen:
        text, changes = _text_of_file(file, option)
        texts.append(text)
        remarks += [f"{file}: {change}" for change in changes]
    if others := Counter(file.suffix.lower() or "no suffix" for file in files if file not in set(chosen)):
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(4))
        remarks.append(
            f"of {folder} only .md and .txt are read, {others.total()} other files are not ({kinds}); "
            "`edgequant corpus --source` reads more kinds"
        )
    return texts, remarks


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _text_of_file(path: Path, option: str) -> tuple[str, tuple[str, ...]]:
    if not path.is_file():
        raise UserError(f"{option} {str(path)!r} must be a folder or a regular file; correct or remove it")
    try:
        kind = kind_of(path.read_bytes(), path.name)
    except OSError as error:
        raise UserError(f"{option} {str(path)!r} cannot be read: {error.strerror or error}") from None
    except ExtractionError as error:
        if str(error).startswith(("empty", "only blanks")):
            return "", ()
        raise UserError(f"{option} {str(path)!r} must be UTF-8 text, got {error}") from None
    if kind not in ("text", "markdown"):
        raise UserError(
            f"{option} {str(path)!r} must be Markdown or plain text, got {kind}; make a data set of it first: "
            f"`edgequant corpus --source {shlex.quote(str(path))} --output FOLDER`"
        )
    return read_text(path, option)


def _saved_texts(folder: Path, option: str) -> list[str]:
    """The train split of a DatasetDict, or a Dataset that has no splits."""
    import datasets

    named = f"{option} {str(folder)!r}"
    _check_unchanged(folder, "train", named)
    try:
        splits = folder / "dataset_dict.json"
        if splits.is_file():  # of other splits nothing is read: an empty one may have no file
            _check_has("train", "split", json.loads(splits.read_bytes())["splits"], named)
            folder = folder / "train"
        found: Any = datasets.load_from_disk(str(folder)) if _has_files(folder) else []
        if not len(found):
            where = "its split 'train'" if splits.is_file() else "it"
            raise UserError(f"{named} must have text in {where}, got 0 rows; {_NO_ROWS}")
        _check_has("text", "column", found.column_names, named)
        texts = _whole_documents(found)
    except UserError:
        raise
    except Exception as error:  # pyarrow, json and datasets each have their own
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{named} is damaged ({why}); make it again with `edgequant corpus`") from None
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{named}, row {row}, column text: must be text, got {text!r:.60}")
    return [unified(text) for text in texts]


def _has_files(folder: Path) -> bool:
    """Of a data set without rows `datasets` writes no file, and cannot read it then."""
    return json.loads((folder / "state.json").read_bytes())["_data_files"] != []


def split_documents(path: str | Path, split: str) -> list[tuple[str, str]]:
    """(domain, text) of each document of a split of a data set on disk; none where it has no such split.

    A data set without a column `domain` is of the domain `text`.

    Raises:
        UserError: a damaged data set.
    """
    import datasets

    folder = Path(path).expanduser() / split
    _check_unchanged(folder.parent, split, f"split {split} of {str(path)!r}")
    if not (folder.parent / "dataset_dict.json").is_file() or not (folder / "state.json").is_file():
        return []
    try:
        found: Any = datasets.load_from_disk(str(folder))
        texts, domains = _column(found, "text"), _column(found, "domain") if "domain" in found.column_names else []
    except Exception as error:  # pyarrow, json and datasets each have their own
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"split {split} of {str(path)!r} is damaged ({why}); make it again") from None
    documents = _documents(found)
    named = [Counter(domains[row] for row in rows).most_common(1)[0][0] if domains else "text" for rows in documents]
    joined = ["\n\n".join(unified(str(texts[row])) for row in rows) for rows in documents]
    return [(domain, text) for domain, text in zip(named, joined, strict=True) if text.strip()]


def _whole_documents(rows: Any) -> list[Any]:
    """Texts of a data set; chunks of one document, one after the other, as one text: none ends where a chunk does."""
    texts = _column(rows, "text")
    groups = _documents(rows)
    whole = all(isinstance(text, str) for text in texts)
    return ["\n\n".join(texts[row] for row in group) for group in groups] if whole else texts


def _documents(rows: Any) -> list[list[int]]:
    """Rows of each document in order: of one file of `edgequant corpus`, but for augmented ones; else each row."""
    if not {"sha256", "source", "augmented"} <= {*rows.column_names}:
        return [[row] for row in range(len(rows))]
    found: list[list[int]] = []
    before = None
    for row, key in enumerate(zip(*(_column(rows, name) for name in ("sha256", "source", "augmented")), strict=True)):
        if key == before and not key[2]:
            found[-1].append(row)
        else:
            found.append([row])
        before = key
    return found


def _column(rows: Any, name: str) -> list[Any]:
    """The values of a column of a `datasets.Dataset`, all at once: `rows[name]` takes ten times as long, row by row."""
    return list(rows.select_columns([name]).with_format("arrow")[:][name].to_pylist())


def _is_of_ours(folder: Path) -> bool:
    made = made_here(folder)
    return made is not None and made.kind == CORPUS


def _check_unchanged(folder: Path, split: str, named: str) -> None:
    """What `edgequant corpus` wrote is read as it was written, or not at all."""
    made = made_here(folder)
    for name, digest in (made.sha256 if made else {}).items():
        if digest and name.partition("/")[0] in (split, "dataset_dict.json"):
            file = folder / name
            if not file.is_file() or sha256_of(file) != digest:
                what = "was changed since edgequant wrote it" if file.is_file() else "is missing"
                raise UserError(f"{named} is damaged: {name} {what}; make it again with `edgequant corpus`")


def _check_has(name: str, what: str, there: Sequence[str], named: str) -> None:
    if name not in there:
        raise UserError(f"{named} must have a {what} {name!r}, got {', '.join(there)}")
