"""Texts to train or calibrate on from a user's file or folder: what was meant, or a refusal that says what is there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgequant.corpora.extraction.extract import kind_of
from edgequant.corpora.extraction.extracted import ExtractionError
from edgequant.corpora.text.decoding import read_text, unified
from edgequant.errors import UserError

_SUFFIXES = (".md", ".txt")


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
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
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
            f"edgequant corpus --source {path} --output FOLDER"
        )
    return read_text(path, option)


def _saved_texts(folder: Path, option: str) -> list[str]:
    """The train split of a DatasetDict, or a Dataset that has no splits."""
    import datasets

    named = f"{option} {str(folder)!r}"
    try:
        splits = folder / "dataset_dict.json"
        if splits.is_file():  # of other splits nothing is read: an empty one may have no file
            _check_has("train", "split", json.loads(splits.read_bytes())["splits"], named)
            folder = folder / "train"
        found: Any = datasets.load_from_disk(str(folder))
        _check_has("text", "column", found.column_names, named)
        texts = list(found["text"])
    except UserError:
        raise
    except Exception as error:  # pyarrow, json and datasets each have their own
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{named} is damaged ({why}); make it again with `edgequant corpus`") from None
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{named}, row {row}, column text: must be text, got {text!r:.60}")
    return [unified(text) for text in texts]


def _check_has(name: str, what: str, there: Sequence[str], named: str) -> None:
    if name not in there:
        raise UserError(f"{named} must have a {what} {name!r}, got {', '.join(there)}")
