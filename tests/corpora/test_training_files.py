"""A user's file or folder gives the texts that were meant, in one form, or says what it is instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from datasets.formatting.formatting import PythonFormatter
from odd_documents import columns_pdf

from edgequant.corpora.training_files import read_training_files, split_documents
from edgequant.errors import UserError
from edgequant.folders import CORPUS, mark_folder

TEXT = "The café by the river\nclosed at noon.\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_leave_the_text_as_it_is_and_are_told(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((TEXT * 9).replace("\n", end).encode(encoding))
    texts, remarks = read_training_files(path)
    assert texts == [TEXT * 9]
    ends = {"\n": [], "\r\n": [f"{path}: CRLF line ends read as LF"], "\r": [f"{path}: CR line ends read as LF"]}[end]
    marks = [f"{path}: byte order mark left out"] if encoding == "utf-8-sig" else []
    assert [remark for remark in remarks if "decoded" not in remark and "order mark" not in remark] == ends
    assert set(marks) <= set(remarks) and bool(remarks) == (encoding != "utf-8" or end != "\n")


def test_marks_of_files_that_were_put_together_go_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffOne.\n\ufeffTwo.\n", encoding="utf-8")
    assert read_training_files(tmp_path / "a.txt")[0] == ["One.\nTwo.\n"]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.txt", TEXT.encode("latin-1"), r"must be UTF-8 text, got bytes that are none \(0xe9 at 7\); convert it"),
        ("a.txt", b"\x00\x01\x02 ab" * 200, "must be UTF-8 text, got binary data"),
        (
            "a.txt",
            columns_pdf(),
            "must be Markdown or plain text, got pdf; make a data set of it first: `edgequant corpus",
        ),
        ("a.pdf", columns_pdf(), "got pdf"),
        ("a.json", b'{"text": "The river."}', "got json;"),
        ("a.jsonl", b'{"text": "The river."}\n', "got jsonl;"),
        ("a.txt", b"<!doctype html><html><p>The river.</p></html>", "got html;"),
        ("a.txt", b"\x89PNG\r\n\x1a\n123", "got not a document: PNG image"),
        ("a.md", b"", r"must hold \.md or \.txt files, .* without text"),
        ("a.md", b"\xef\xbb\xbf \r\n --- \r\n", "without text"),
        ("a.parquet", b"PAR1\x15\x04\x15\x80\x89\xff" * 50, r"must be UTF-8 text, got binary data \(Parquet file\)"),
    ],
)
def test_what_is_no_text_is_refused_by_what_it_is(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_training_files(tmp_path / name, "guard")
    assert str(caught.value).startswith("guard ") and "\n" not in str(caught.value)


def test_of_a_folder_the_other_files_are_told_and_hidden_ones_are_not_looked_at(tmp_path: Path) -> None:
    for name in ("a.md", "B.TXT", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("d.pdf", "e.pdf", "f", ".hidden.txt"):
        (tmp_path / name).write_text("other")
    (tmp_path / "folder.md").mkdir()
    texts, remarks = read_training_files(tmp_path)
    assert sorted(texts) == ["B.TXT", "a.md", "sub/c.txt"]
    assert remarks == [
        f"of {tmp_path} only .md and .txt are read, 3 other files are not (2 .pdf, 1 no suffix); "
        "`edgequant corpus --source` reads more kinds"
    ]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(UserError, match=r"a\.txt' must be a folder or a regular file"):
            read_training_files(path)


def saved(folder: Path, **columns: list) -> Path:
    DatasetDict({"train": Dataset.from_dict(columns)}).save_to_disk(str(folder))
    return folder


def test_a_data_set_on_disk_must_hold_text_in_its_column(tmp_path: Path) -> None:
    assert read_training_files(saved(tmp_path / "a", text=["One.\r\n", "Two."]))[0] == ["One.\n", "Two."]
    for name, columns, said in (
        ("b", {"text": ["One.", None]}, "row 1, column text: must be text, got None"),
        ("c", {"text": [1, 2]}, "row 0, column text: must be text, got 1"),
        ("d", {"chunk": ["One."]}, "must have a column 'text', got chunk"),
    ):
        with pytest.raises(UserError, match=said):
            read_training_files(saved(tmp_path / name, **columns))
    DatasetDict({"test": Dataset.from_dict({"text": ["One."]})}).save_to_disk(str(tmp_path / "e"))
    with pytest.raises(UserError, match="must have a split 'train', got test"):
        read_training_files(tmp_path / "e")
    with pytest.raises(UserError, match="must have text in its split 'train', got 0 rows; add documents"):
        read_training_files(saved(tmp_path / "f", text=[]))


def test_a_damaged_data_set_is_refused_and_one_without_splits_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", text=["One."])
    next((folder / "train").glob("*.arrow")).write_bytes(b"short")
    with pytest.raises(UserError, match=r"is damaged .* make it again with `edgequant corpus`"):
        read_training_files(folder)
    Dataset.from_dict({"text": ["One."]}).save_to_disk(str(tmp_path / "b"))
    assert read_training_files(tmp_path / "b")[0] == ["One."]


# -------------------------------------------------------------------------------------------- documents out of chunks


def corpus_of(folder, splits):
    """As `edgequant corpus` writes it: a row for each chunk (text, document, domain, augmented)."""
    from datasets import Dataset, DatasetDict

    made = {}
    for split, rows in splits.items():
        columns = {
            "text": [row[0] for row in rows], "sha256": [row[1] for row in rows], "source": [row[1] for row in rows],
            "domain": [row[2] for row in rows], "augmented": [row[3] for row in rows],
        }  # fmt: skip
        made[split] = Dataset.from_dict(columns)
    DatasetDict(made).save_to_disk(str(folder))
    return folder


ROWS = [
    ("one", "a.md", "Water", False), ("two", "a.md", "Water", False), ("three", "a.md", "Food", False),
    ("four", "b.md", "Food", False), ("two, changed", "a.md", "Water", True), ("two, again", "a.md", "Water", True),
]  # fmt: skip


def test_chunks_of_one_document_are_one_text_and_augmented_ones_are_texts_of_their_own(tmp_path):
    folder = corpus_of(tmp_path / "corpus", {"train": ROWS})
    texts, _ = read_training_files(folder)
    assert texts == ["one\n\ntwo\n\nthree", "four", "two, changed", "two, again"]


def test_a_data_set_of_others_keeps_its_rows_as_they_are(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = {"text": ["one", "two"], "source": ["wikipedia", "wikipedia"]}
    DatasetDict({"train": Dataset.from_dict(rows)}).save_to_disk(str(tmp_path / "theirs"))
    assert read_training_files(tmp_path / "theirs")[0] == ["one", "two"]


def test_columns_are_read_at_once_and_not_row_by_row(tmp_path, monkeypatch):
    """Row by row a corpus takes ten times as long, and every phase of a pipeline reads it."""
    folder = corpus_of(tmp_path / "corpus", {"train": ROWS, "test": ROWS[:4]})
    expected = read_training_files(folder), split_documents(folder, "test")
    monkeypatch.setattr(PythonFormatter, "format_column", None)
    monkeypatch.setattr(PythonFormatter, "format_batch", None)
    assert (read_training_files(folder), split_documents(folder, "test")) == expected


def test_documents_of_a_split_have_the_domain_of_most_of_their_chunks(tmp_path):
    folder = corpus_of(tmp_path / "corpus", {"train": ROWS, "test": ROWS[:4]})
    assert split_documents(folder, "test") == [("Water", "one\n\ntwo\n\nthree"), ("Food", "four")]
    assert split_documents(folder, "validation") == [] == split_documents(tmp_path, "test")


@pytest.mark.parametrize("name", ["train/state.json", "train/data-00000-of-00001.arrow", "dataset_dict.json"])
def test_a_data_set_of_ours_with_a_changed_byte_or_a_file_that_is_gone_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    rows = Dataset.from_dict({"text": ["Water rose.", "It fell."]})
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "texts"))
    (tmp_path / "texts" / "README.md").write_text("# A card, which is no text to train on")
    mark_folder(tmp_path / "texts", CORPUS)
    assert read_training_files(tmp_path / "texts")[0] == ["Water rose.", "It fell."]
    file = tmp_path / "texts" / name
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    for content, why in ((bytes(changed), "was changed since edgequant wrote it"), (None, "is missing")):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=f"{name} {why}; make it again"):
            read_training_files(tmp_path / "texts")
    file.write_bytes(whole)
    (tmp_path / "texts" / "test" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"test/state.json was changed"):
        split_documents(tmp_path / "texts", "test")
