"""What is named must be there, before a run exists; only what nobody asked for is left out, and that is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgequant.errors import UserError
from edgequant.evaluation.tasks.registry import COMPARISON_TASKS, DEFAULT_TASKS, add_task
from edgequant.evaluation.tasks.squad import check_predictions
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Task
from edgequant.workflows.steps.data import check_data, evaluation_data


def refused(*arguments, **texts) -> str:
    with pytest.raises(UserError) as caught:
        check_data(*arguments, **texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tasks", [DEFAULT_TASKS, COMPARISON_TASKS])
def test_without_a_folder_only_what_is_measured_unasked_is_left_out_and_said(tasks, capsys):
    wanted = [name for name in tasks if name in ("perplexity", "boolq", "squad")]
    assert wanted
    assert check_data(tasks, None) == [f"not measured, because no data_dir: {', '.join(wanted)}; pass --data_dir DATA"]
    assert capsys.readouterr().out == ""


def test_a_task_that_is_named_or_needed_must_have_its_data():
    assert refused(("domain_perplexity", "squad"), None) == (
        "task squad is asked for and needs squad/dev-v1.1.json, and no data folder is named; "
        "pass --data_dir DATA or set EDGEQUANT_DATA, or leave the task out"
    )
    assert "task boolq is asked for" in refused(DEFAULT_TASKS, None, needed=("domain_perplexity", "boolq"))
    assert "task guard is measured by qat alone" in refused(("guard", "latency"), None)
    assert check_data(("guard", "latency"), None, apart=("guard",)) == []


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_folder_that_is_named_must_exist(tmp_path, monkeypatch, by_variable):
    (tmp_path / "file").write_text("")
    option = "$EDGEQUANT_DATA" if by_variable else "data_dir"
    for name, why in (("none", "not found"), ("file", "a file")):
        path = str(tmp_path / name)
        monkeypatch.setenv("EDGEQUANT_DATA", path if by_variable else "/set/but/not/looked/at")
        given = None if by_variable else path
        for call in (check_data, evaluation_data):
            with pytest.raises(UserError, match=re.escape(f"{option} must be a folder")) as caught:
                call(("latency",), given)
            assert f"got {path!r}: {why}; correct it, or" in str(caught.value)
    if not by_variable:
        assert "got '': not found" in refused(("latency",), "")


def test_an_unset_variable_names_no_folder(monkeypatch):
    monkeypatch.setenv("EDGEQUANT_DATA", "")
    assert check_data(("latency",), None) == []


def test_a_folder_must_hold_what_the_tasks_need_and_what_is_there_is_listed(tmp_path):
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "validation.jsonl").write_text("")
    assert refused(("boolq", "latency"), str(tmp_path)) == (
        "data_dir must hold boolq/dev.jsonl, which task boolq needs, got validation.jsonl in "
        f"'{tmp_path}/boolq'; put the official file there; or measure without: --evaluation.tasks '[latency]'"
    )
    assert refused(("squad",), str(tmp_path)) == (
        "data_dir must hold squad/dev-v1.1.json, which task squad needs, got boolq/ in "
        f"'{tmp_path}'; put the official file there"
    )
    assert "which task perplexity needs" in refused(DEFAULT_TASKS, str(tmp_path))
    with pytest.raises(UserError, match="which task boolq needs"):
        evaluation_data(("boolq",), str(tmp_path))


def test_a_packages_task_says_where_its_data_are_or_is_refused(tmp_path, monkeypatch):
    from edgequant.evaluation.tasks import registry

    monkeypatch.setattr(registry, "_of_this_process", {})
    rows = DataSet(name="cloze", load=lambda split, data_dir: None)
    add_task(Task(name="cloze", score=lambda *_: Evaluation(), data=(rows,), protocol="", display={}))
    assert "lacks the data of task cloze" in refused(("cloze",), str(tmp_path))
    assert "task cloze is asked for and needs its data set cloze" in refused(("cloze",), None)


def test_texts_are_named_by_their_option_and_mixes_are_looked_through(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"The river rose.\r\n")
    (tmp_path / "b.txt").write_text(" \n")
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    check_data(("latency",), None, dataset=f"disaster,{a}:0.3", guard="self-generated")
    assert capsys.readouterr().out == f"dataset {a}: CRLF line ends read as LF\n"
    assert refused(("latency",), None, dataset="disaster", guard=b).startswith("guard must hold .md or .txt files")
    assert "dataset wikitext-2 needs, got a.txt, b.txt in" in refused(("latency",), str(tmp_path), dataset="wikitext-2")
    assert capsys.readouterr().out == ""


def test_the_data_are_named_by_what_they_are_and_what_stands_in_for_the_training_split(data_dir, capsys):
    check_data(("perplexity", "boolq", "squad", "domain_qa"), str(data_dir), dataset="wikitext-2")
    assert capsys.readouterr().out.splitlines() == [
        f"wikitext2: official WikiText-2 test split ({data_dir}/wikitext-2/wiki.test.raw)",
        f"boolq: official BoolQ validation split ({data_dir}/boolq/dev.jsonl)",
        f"squad: official SQuAD v1.1 validation split ({data_dir}/squad/dev-v1.1.json)",
        f"dataset wikitext-2: WikiText-2 validation split, tokenised ({data_dir}/wikitext-2/wiki.valid.tokens)",
        "dataset wikitext-2: tokenised text; <unk> left out, for training only",
    ]


def test_predictions_must_answer_the_questions_and_what_they_leave_open_is_said(tmp_path: Path):
    rows = [{"id": "a", "answers": {"text": ["x"]}}, {"id": "b", "answers": {"text": ["x"]}}]
    path = tmp_path / "p.json"
    path.write_bytes(json.dumps({"a": "x", "b": "y", "c": "z"}).encode("utf-8-sig"))
    assert check_predictions(path, rows) == []
    path.write_text(json.dumps({"a": "x"}))
    assert check_predictions(path, rows) == [f"{path} leaves 1 of 2 questions unanswered, which count as wrong"]
    path.write_text(json.dumps({"c": "x"}))
    with pytest.raises(UserError, match="none of whose 1 ids is one of them"):
        check_predictions(path, rows)


def test_domain_questions_are_in_the_languages_that_are_trained_on(store):
    tasks = ("domain_qa", "closed_book")
    english, all_three = (evaluation_data(tasks, None, dataset) for dataset in ("disaster", "disaster-multilingual"))
    for name in ("domain_boolean", "domain_span", "closed_book"):
        assert len(english[name]) < len(all_three[name]) and all_three[name][: len(english[name])] == english[name]
    assert {row["language"] for row in all_three["closed_book"]} == {"en", "si", "ta"}
    assert {row["language"] for row in english["closed_book"]} == {"en"}
