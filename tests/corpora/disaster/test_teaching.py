"""Closed-book questions and instructions are taught by training documents; paraphrases of answers are accepted."""

from __future__ import annotations

import json

import pytest

from edgequant.corpora.disaster.corpus import (
    SPAN_QUESTIONS,
    SPAN_QUESTIONS_SI_TA,
    bundled_documents,
    closed_book_questions,
    instructions,
    span_questions,
)
from edgequant.corpora.disaster.paraphrases import paraphrases
from edgequant.corpora.disaster.questions import window_accuracy
from edgequant.corpora.disaster.teaching import bundled_faults, check_closed_book, check_instructions
from edgequant.evaluation.tasks.squad_scoring import exact_match, token_f1


def test_the_bundled_sets_pass_their_checker() -> None:
    assert bundled_faults() == []


def test_they_are_as_large_as_documented_and_ask_over_all_new_documents() -> None:
    assert len(closed_book_questions()) == 241 and len(instructions()) == 202
    assert {language: len(closed_book_questions(language)) for language in ("si", "ta")} == {"si": 32, "ta": 32}
    assert {row["document"] for row in closed_book_questions()} >= {
        document.source
        for document in bundled_documents("train")
        if document.setting != "invented" and document.language == "en"
    }
    assert {*closed_book_questions()[0]} == {"id", "document", "language", "question", "answers"}
    assert {*instructions()[0]} == {"id", "document", "language", "instruction", "answer"}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"document": "wash-10-nilwala-intake-field-report.md"}, "is no training document"),
        ({"document": "nowhere.md"}, "document 'nowhere.md' is no training document"),
        ({"language": "ta"}, "language 'ta' is not that of"),
        ({"answers": ["ninety-nine elephants"]}, "none of its answers is in"),
        ({"answers": []}, "no answer, or an empty one"),
        ({"question": " "}, "question is empty"),
    ],
)
def test_the_checker_finds_what_is_wrong_with_a_closed_book_question(changed: dict, fault: str) -> None:
    row = {**closed_book_questions()[0], **changed}
    assert fault in "\n".join(check_closed_book([row], []))


def test_a_closed_book_question_that_training_text_asks_is_found() -> None:
    row = closed_book_questions()[0]
    trained = {**instructions()[0], "instruction": row["question"]}
    assert "asks the same" in "\n".join(check_closed_book([row], [trained]))
    sentence = bundled_documents("train")[0].text.split(". ")[1]
    assert "overlaps closed-book questions" in "\n".join(check_closed_book([{**row, "question": sentence}], []))
    assert "stands 2 times" in "\n".join(check_closed_book([row, row], []))


def test_an_instruction_that_repeats_what_is_held_out_is_found() -> None:
    test = next(document for document in bundled_documents("test") if document.language == "en")
    rows = [{**instructions()[0], "answer": " ".join(test.text.split()[40:80])}]
    assert "overlaps held-out documents and questions" in "\n".join(check_instructions(rows))
    asked = next(row["question"] for row in span_questions() if 6 <= len(row["question"].split()) < 13)
    assert "repeats questions" in "\n".join(check_instructions([{**instructions()[0], "instruction": asked}]))


@pytest.mark.parametrize(
    ("answer", "question", "context", "accepted"),
    [
        ("960", "What weight was sold?", "They sold 960 kilograms of cardboard.", "960 kilograms"),
        ("960", "What weight was sold?", "They sold 960 kilograms of cardboard.", "960 kg"),
        ("960 kilograms", "What weight was sold?", "They sold 960 kilograms.", "960"),
        ("forty-one", "How many villages are there?", "It covers forty-one places.", "41 villages"),
        ("41", "How many?", "41", "forty one"),
        ("two thirds", "What share?", "two thirds", "2/3"),
        ("19 September", "When?", "It opened on 19 September.", "September 19"),
        ("15:30", "By when?", "by 15:30", "3:30 pm"),
        ("Pangtang", "Where?", "The mill at Pangtang was buried.", "at Pangtang"),
        ("about 80 minutes", "How long?", "a trip of about 80 minutes", "eighty minutes"),
        ("fifteen litres a minute", "At what rate?", "", "15 l per minute"),
        ("12", "How many minutes?", "12 of them", "12 minutes"),
        ("one metre", "How far?", "one metre", "1 m"),
    ],
)
def test_the_obvious_paraphrase_of_an_answer_is_accepted(
    answer: str, question: str, context: str, accepted: str
) -> None:
    assert exact_match(accepted, [answer, *paraphrases([answer], question, context)]) == 1


@pytest.mark.parametrize(
    ("answer", "question", "wrong"),
    [
        ("ten days", "How long did it last?", "10"),  # of what?
        ("ten days", "How long did it last?", "ten weeks"),
        ("16 kilograms", "What weight?", "60 kilograms"),
        ("3 mm", "What gap?", "3 metres"),
        ("02:40", "When?", "2:40 pm"),
        ("two thirds", "What share?", "one third"),
        ("the driver", "Who?", "driver of the bus"),
    ],
)
def test_what_means_something_else_is_not_accepted(answer: str, question: str, wrong: str) -> None:
    assert exact_match(wrong, [answer, *paraphrases([answer], question, answer)]) == 0


def test_the_bundled_spans_list_every_paraphrase_by_rule_and_the_issues_example() -> None:
    for article in json.loads(SPAN_QUESTIONS.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = [answer["text"] for answer in question["answers"]]
                found = paraphrases(answers, question["question"], paragraph["context"])
                assert set(found) <= {*question.get("paraphrases", ())}, question["id"]
                assert not {*answers} & {*question.get("paraphrases", ())}, question["id"]
    cardboard = next(row for row in span_questions() if row["id"] == "waste-s-019")["answers"]["text"]
    assert [token_f1(said, cardboard) for said in ("960", "960 kilograms", "960 kg", "the 960 kilograms")] == [1] * 4


def test_the_form_of_squad_keeps_answers_that_stand_in_their_context() -> None:
    for path in (SPAN_QUESTIONS, SPAN_QUESTIONS_SI_TA):
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                for answer in (answer for question in paragraph["qas"] for answer in question["answers"]):
                    assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])
    assert window_accuracy(span_questions()) <= 0.01
