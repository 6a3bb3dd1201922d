"""Columns of BoolQ and SQuAD hold what they must, WikiText comes in one form, and official files are known."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from edgequant.corpora import benchmarks
from edgequant.corpora.benchmarks import load_boolq, load_squad, read_split
from edgequant.errors import UserError

BOOLQ = {"question": "is it", "title": "It", "passage": "It is.", "answer": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder to write to."""
    for name in ("wikitext-2", "boolq", "squad"):
        (tmp_path / name).mkdir()
    return tmp_path


def refused(folder: Path, name: str, file: str, content: str) -> str:
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_split(name, "validation", folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of_rows(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# ---------------------------------------------------------------------------------------------------------------- BoolQ


@pytest.mark.parametrize(
    "yes, no", [("true", "FALSE"), ("yes", " no "), (1, 0), (1.0, 0.0), ("1", "0")], ids=lambda value: repr(value)
)
def test_answers_in_other_words_give_the_official_rows_and_are_told(folder, data_dir, yes, no):
    official = [json.loads(line) for line in (data_dir / "boolq" / "dev.jsonl").read_text("utf-8").split("\n") if line]
    rows = [row | {"answer": yes if row["answer"] else no} for row in official]
    (folder / "boolq" / "dev.jsonl").write_text(of_rows(*rows))
    found = read_split("boolq", "dev", folder)
    assert [row["answer"] for row in found.rows] == [row["answer"] for row in official]
    assert all(type(row["answer"]) is bool for row in found.rows)
    assert found.identity == "official BoolQ validation split"
    shown = json.dumps(yes), json.dumps(no)
    assert sorted(found.changes) == sorted(
        f"answer {value} read as {meant}: {count} times, first in {folder}/boolq/dev.jsonl, line {line}"
        for value, meant, count, line in (
            (shown[0], "true", "2,033", 1 + [row["answer"] for row in official].index(True)),
            (shown[1], "false", "1,237", 1 + [row["answer"] for row in official].index(False)),
        )
    )


@pytest.mark.parametrize(
    "column, value, shown",
    [
        ("answer", None, "null"), ("answer", 2, "2"), ("answer", "maybe", '"maybe"'), ("answer", [True], "[true]"),
        ("answer", "", '""'), ("answer", -1, "-1"), ("question", 7, "7"), ("passage", "  ", '"  "'),
        ("passage", None, "null"), ("title", 3, "3"),
    ],
)  # fmt: skip
def test_what_is_no_answer_or_no_text_is_refused_with_its_place(folder, column, value, shown):
    said = refused(folder, "boolq", "boolq/dev.jsonl", of_rows(BOOLQ, BOOLQ | {column: value}))
    expected = "true or false" if column == "answer" else "text"
    assert (
        said == f"{folder}/boolq/dev.jsonl, line 2, column {column}: must be {expected}, got {shown}; correct the row"
    )


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"question": "q", "passage": "p", "answer": true, "answer": false}', "key 'answer' stands twice"),
        ('["q", "p", true]', "must be an object with question, passage, answer"),
        (
            '{"question": "q", "passage": "p", "label": true}',
            "column answer not found, there are: question, passage, lab",
        ),
        ('{"question": "q"', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_line_that_is_no_row_is_refused_with_its_number(folder, line, said):
    message = refused(folder, "boolq", "boolq/dev.jsonl", f"\n{of_rows(BOOLQ)}\n{line}\n")
    assert f"{folder}/boolq/dev.jsonl, line 4" in message and said in message


def test_blank_lines_and_crlf_and_a_mark_and_other_encodings_leave_boolq_as_it_is(folder, data_dir):
    official = (data_dir / "boolq" / "dev.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in official.split("\n") if line]
    changed = "\ufeff" + official.replace("\n", "\r\n\r\n") + "\r\n \r\n"
    for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-32"):
        (folder / "boolq" / "dev.jsonl").write_bytes(changed.encode(encoding))
        found = read_split("boolq", "validation", folder)
        assert found.rows == rows and found.identity == "official BoolQ validation split", encoding
        assert "CRLF line ends read as LF" in found.changes


def test_python_callers_are_warned_of_what_was_converted(folder, monkeypatch):
    monkeypatch.setitem(benchmarks.BOOLQ.rows, "validation", 1)
    (folder / "boolq" / "dev.jsonl").write_text(of_rows(BOOLQ | {"answer": "no"}))
    with pytest.warns(UserWarning, match='answer "no" read as false: 1 time, first in'):
        assert load_boolq("dev", folder)[0]["answer"] is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (folder / "boolq" / "dev.jsonl").write_text(of_rows(BOOLQ))
        assert load_boolq("dev", folder) == [BOOLQ]


def test_rows_of_the_hub_are_checked_too(monkeypatch, tmp_path):
    import datasets

    rows = [BOOLQ, {"question": "q", "passage": "p", "answer": "unknown"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(UserError, match=r"google/boolq, row 1, column answer: must be true or false, got \"unknown\""):
        load_boolq("dev", tmp_path)


# ---------------------------------------------------------------------------------------------------------------- SQuAD


def article(context: object = "It is here.", **changes: object) -> str:
    first = {"id": "a", "question": "What?", "answers": [{"text": "It", "answer_start": 0}]}
    paragraph = {"context": context, "qas": [first, first | {"id": "b"} | changes]}
    return json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": [paragraph]}]})


PLACE = "squad/dev-v1.1.json: data[0].paragraphs[0].qas[1]"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"answers": []}, f"{PLACE} (id b), column answers: must be one or more, got none; SQuAD v2"),
        ({"answers": [], "is_impossible": True}, "column is_impossible: must be false, got true; SQuAD v2"),
        ({"answers": None}, "column answers: must be a list of {text, answer_start}, got null"),
        ({"answers": [{"text": "", "answer_start": 0}]}, '(id b), column answers: must be text, got ""'),
        ({"answers": [{"text": 5, "answer_start": 0}]}, "column answers: must be text, got 5"),
        ({"answers": [{"text": "Else", "answer_start": 0}]}, 'must stand in the context, got "Else", which does not'),
        ({"id": "a"}, "column id: must be a question's own, got 'a', which is"),
        ({"id": 5}, "column id: must be text, got 5"),
        ({"question": " "}, '(id b), column question: must be text, got " "'),
        ({"context": ""}, '(id a), column context: must be text, got ""'),
    ],
)
def test_what_squad_must_hold(folder, changes, said):
    context = changes.pop("context", "It is here.")
    assert said in refused(folder, "squad", "squad/dev-v1.1.json", article(context, **changes))


def test_another_form_than_squads_is_refused_with_the_key_that_it_lacks(folder):
    for content, said in (
        ("[]", "must have a list 'data', got []"),
        ('{"data": [{"title": "T"}]}', "data[0] is not SQuAD v1.1: must have a list 'paragraphs'"),
        ('{"data": [{"title": "T", "paragraphs": [3]}]}', "data[0].paragraphs[0] must be an object, got 3"),
        ('{"data": [], "data": []}', "key 'data' stands twice"),
    ):
        assert said in refused(folder, "squad", "squad/dev-v1.1.json", content)


def test_an_offset_that_points_elsewhere_is_set_right_and_told(folder, monkeypatch):
    monkeypatch.setitem(benchmarks.SQUAD.rows, "validation", 2)
    wrong = [{"text": "is", "answer_start": at} for at in (0, 99, None, "3", 11)] + [{"text": "is", "answer_start": 13}]
    (folder / "squad" / "dev-v1.1.json").write_text(article("It is here: is it?", answers=wrong))
    found = read_split("squad", "dev", folder)
    assert found.rows[1]["answers"]["answer_start"] == [3, 3, 3, 3, 12, 12]
    (told,) = found.changes
    assert told.startswith("answer_start set to where the answer stands (scores do not look at it): 6 times, first in")


def test_line_ends_within_a_paragraph_are_unified_and_its_offsets_follow(folder, monkeypatch):
    monkeypatch.setitem(benchmarks.SQUAD.rows, "validation", 2)
    context = "One.\r\nTwo.\r\nIt is It."
    start = context.rindex("It")
    (folder / "squad" / "dev-v1.1.json").write_text(
        article(context, answers=[{"text": "It", "answer_start": start}, {"text": "Two.\r\nIt", "answer_start": 6}])
    )
    row = read_split("squad", "dev", folder).rows[1]
    assert row["context"] == "One.\nTwo.\nIt is It."
    for text, at in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        assert row["context"][at : at + len(text)] == text
    assert row["answers"]["answer_start"] == [start - 2, 5]


def test_squad_written_otherwise_is_still_the_official_set_and_one_letter_less_is_not(folder, data_dir):
    whole = json.loads((data_dir / "squad" / "dev-v1.1.json").read_text("utf-8"))
    path = folder / "squad" / "dev-v1.1.json"
    path.write_bytes(json.dumps(whole, indent=1, ensure_ascii=True).replace("\n", "\r\n").encode("utf-8-sig"))
    found = read_split("squad", "dev", folder)
    assert found.identity == "official SQuAD v1.1 validation split"
    assert found.rows == load_squad("dev", data_dir)
    whole["data"][0]["paragraphs"][0]["qas"][0]["question"] += "?"
    path.write_text(json.dumps(whole))
    assert read_split("squad", "dev", folder).identity.startswith(f"not the official file: {path} differs from")


# ------------------------------------------------------------------------------------------------------------- WikiText


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_wikitext_of_any_editor_has_the_rows_and_the_tokens_of_the_official_file(folder, data_dir, encoding, end):
    official = (data_dir / "wikitext-2" / "wiki.test.raw").read_bytes().decode()
    (folder / "wikitext-2" / "wiki.test.raw").write_bytes(official.replace("\n", end).encode(encoding))
    found = read_split("wikitext2", "test", folder)
    assert found.identity == "official WikiText-2 test split"
    assert "".join(row or " \n" for row in found.rows) == official
    assert bool(found.changes) == (encoding != "utf-8" or end != "\n")


def test_wikitext_with_one_letter_less_is_not_the_official_file(folder, data_dir):
    official = (data_dir / "wikitext-2" / "wiki.test.raw").read_bytes()
    path = folder / "wikitext-2" / "wiki.test.raw"
    path.write_bytes(official.replace(b"Boulter", b"Bolter", 1))
    found = read_split("wikitext2", "test", folder)
    assert found.identity == f"not the official file: {path} differs from the official WikiText-2 test split"
    path.write_bytes(official)
    assert read_split("wikitext2", "test", folder).identity == "official WikiText-2 test split"  # not remembered


def test_wikitext_in_latin_1_or_binary_is_refused(folder):
    for content in ("Café =\n".encode("latin-1"), b"\x00\x01\x02\x03" * 100):
        (folder / "wikitext-2" / "wiki.test.raw").write_bytes(content)
        with pytest.raises(UserError, match=r"wiki\.test\.raw must be UTF-8 text, got"):
            read_split("wikitext2", "test", folder)
