"""What a search chooses by is never what it reports."""

from __future__ import annotations

import json

import pytest

from edgequant.errors import UserError
from edgequant_tune.scoring.selection import check_scored, parts_of, selection, told_splits


def test_a_search_scores_on_the_selection_split_and_never_on_one_that_is_trained_on(tmp_path):
    reported, data = ["what is reported"], str(tmp_path)
    question = json.dumps({"question": "is it", "title": "It", "passage": "It is.", "answer": True})
    for file, line, lines in (("boolq/train.jsonl", question, 9427), ("wikitext-2/wiki.valid.raw", " a line ", 3760)):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(f"{line}\n" * lines)
    boolq = parts_of("boolq", reported, "disaster", data)
    assert (len(boolq.select), boolq.report, boolq.split) == (9427, reported, "train")
    assert parts_of("wikitext2", reported, "disaster", data) == ([" a line \n"] * 3760, reported, "validation")
    trained = parts_of("wikitext2", reported, "disaster:0.5,wikitext-2:0.5", data)
    assert (trained.select, trained.report) == (None, reported), "rather nothing than what is trained on or reported"


def test_articles_are_whole_in_one_half_where_the_validation_text_is_trained_on(tmp_path):
    heading = " = Article {} = \n"
    whole = [[heading.format(at), "", f" of {at} \n", " = = Part = = \n", " same \n", ""] for at in range(60)]
    whole[7][4] = " = 1 rad / s and a nominal impedance k = \n"  # of a formula, as the official test split has two
    rows = ["", *(line for article in whole for line in article)]
    select, report, split = parts_of("wikitext2", rows, "wikitext-2", str(tmp_path))
    assert split == "half" and len(select) + len(report) == len(rows) and 120 < len(select) < 240
    named = [{row for row in half if row.startswith(" of ")} for half in (select, report)]
    assert not named[0] & named[1] and len(named[0] | named[1]) == 60
    for half in (select, report):
        for at in (at for at in range(60) if f" of {at} \n" in half):
            start = half.index(heading.format(at))
            assert half[start : start + 6] == whole[at]


def test_an_objective_whose_trials_cannot_be_scored_is_refused_before_the_search(monkeypatch):
    from edgequant_tune.scoring import selection as module

    rows = {"validation": ["a line"], "test": ["a line"]}
    monkeypatch.setattr(module, "rows_of", lambda data_set, split, data_dir: rows[split])
    check_scored(("domain_perplexity", "perplexity"), "disaster", None)
    with pytest.raises(UserError, match=r"task perplexity.*no rows of wikitext2.*too few to be halved"):
        check_scored(("domain_perplexity", "perplexity"), "wikitext-2", None)


@pytest.mark.parametrize(
    ("name", "text"), [("boolq", "passage"), ("domain_boolean", "passage"), ("domain_span", "context")]
)
def test_without_another_split_a_search_chooses_by_one_half_and_reports_the_other(name, text, tmp_path):
    reported = [{"question": f"{at}?", text: f"of page {at // 3}"} for at in range(300)]
    select, report, split = parts_of(name, reported, "disaster", str(tmp_path))
    assert split == "half" and sorted(map(str, [*select, *report])) == sorted(map(str, reported))
    assert not {row[text] for row in select} & {row[text] for row in report}, "no page is in both"
    assert 90 < len(select) < 210
    again = parts_of(name, reported[::-1], "disaster", str(tmp_path))
    assert sorted(map(str, again.select)) == sorted(map(str, select)), "whatever the order"


def test_only_what_trials_are_scored_on_is_halved_and_the_splits_are_told():
    questions = [{"passage": f"p{at}", "context": f"p{at}", "question": "?"} for at in range(40)]
    data = {"domain_boolean": questions, "boolq": questions, "squad": None}
    found = selection(data, ("domain_qa",), "disaster", None)
    assert found.splits == {"domain_boolean": "half"} and set(found.select) == {"domain_boolean"}
    assert found.report["boolq"] is questions and len(found.report["domain_boolean"]) < 40


def test_the_tag_of_trials_says_what_they_were_scored_on(tmp_path):
    data = str(tmp_path)
    assert told_splits(["domain_perplexity"], "disaster", data) == "validation"
    assert told_splits(["domain_qa", "boolq"], "disaster", data) == "half"
    mixed = told_splits(["domain_perplexity", "perplexity", "boolq", "latency"], "disaster", data)
    assert mixed == "domain: validation, wikitext2: half, boolq: half"
