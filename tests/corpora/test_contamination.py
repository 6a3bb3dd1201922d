"""What is trained on does not repeat what is scored."""

from __future__ import annotations

import pytest

from edgequant.corpora import contamination
from edgequant.corpora.contamination import Overlap, refuse_overlap, words_of
from edgequant.errors import UserError

SENTENCE = "the boats left the jetty at dawn and carried nine people each across the flooded lagoon to the school"


def measure_overlap(training: list[str], evaluation: list[str]) -> Overlap:
    return refuse_overlap(training, {"any": evaluation}, max_share=1.0)["any"]


def test_overlap_shares_are_counted_on_both_sides() -> None:
    words = SENTENCE.split()  # 19 words: 7 distinct 13-grams
    overlap = measure_overlap([SENTENCE + " twice more"], [" ".join(words[:14])])
    assert overlap.of_training == pytest.approx(2 / 9)
    assert overlap.of_evaluation == 1.0


def test_case_and_punctuation_do_not_hide_an_overlap() -> None:
    changed = SENTENCE.upper().replace(" AND ", ", and -- ")
    assert measure_overlap([changed], [SENTENCE]).share == 1.0


def test_a_test_set_hidden_in_much_training_text_is_found() -> None:
    other = [f"word{i} " * 40 for i in range(2_000)]
    with pytest.raises(UserError, match=r"100\.0% of squad is in it"):
        refuse_overlap([*other, SENTENCE], {"squad": [SENTENCE]})


def test_twelve_shared_words_are_no_overlap() -> None:
    twelve = " ".join(SENTENCE.split()[:12])
    assert refuse_overlap([twelve + " but then"], {"boolq": [twelve + " and so on"]})["boolq"].share == 0.0


def test_sinhala_and_tamil_words_stay_whole() -> None:
    assert words_of("ක්‍රමය, நீர்!") == ["ක්‍රමය", "நீர்"]


def test_bundled_training_documents_do_not_overlap_the_held_out_ones() -> None:
    from edgequant.corpora.disaster.corpus import bundled_documents

    held_out = [document.text for split in ("validation", "test") for document in bundled_documents(split)]
    refuse_overlap([document.text for document in bundled_documents("train")], {"held out": held_out}, max_share=0.0)


# ----------------------------------------------------------------------------------- questions, which have no 13-gram

QUESTIONS = [f"is the {place} bridge closed to all heavy traffic" for place in ("north", "south", "old", "new")]


def test_questions_that_are_trained_on_are_found_whole() -> None:
    lines = "\n".join(f"{question.capitalize()}? Yes." for question in QUESTIONS[:2])
    with pytest.raises(UserError, match=r"repeats questions of boolq: 50\.0% of them, .* remove them"):
        refuse_overlap([lines, SENTENCE], {"boolq": QUESTIONS})


def test_a_few_questions_of_many_are_found_where_they_are_the_training_text() -> None:
    many = [f"is road {n} of the district closed to all traffic" for n in range(1_000)]
    with pytest.raises(UserError, match=r"0\.1% of them, which make 90\.9% of it"):
        refuse_overlap([many[7] + " yes"], {"boolq": many})
    elsewhere = " ".join(f"word{n}" for n in range(2_000))
    assert refuse_overlap([many[7], elsewhere], {"boolq": many})["boolq"].share < 0.01


def test_questions_of_five_words_may_be_asked_anywhere() -> None:
    assert refuse_overlap(["is the bridge open now"], {"boolq": ["is the bridge open now"]})["boolq"].share == 0.0


def test_everything_that_is_scored_has_its_text_compared(data_dir) -> None:
    """One folder for each data set, which repeats it; the bundled training text passes them all."""
    from edgequant.corpora.disaster.corpus import bundled_documents
    from edgequant.evaluation.tasks.registry import TASKS, find_data_set
    from edgequant.workflows.steps.data import rows_of
    from edgequant.workflows.steps.sequences import evaluated_texts

    names = [each.name for task in TASKS for each in task.data if each.name != "guard"]
    data = {name: rows_of(find_data_set(name), find_data_set(name).report, str(data_dir)) for name in names}
    texts = evaluated_texts(data)
    assert len(texts) == len(names)
    train = [document.text for document in bundled_documents("train") if document.language == "en"]
    refuse_overlap(train, texts)
    leaks = {
        "boolq/validation": " ".join(row["question"] + "? yes" for row in data["boolq"][:40]),
        "squad/validation": data["squad"][100]["context"],
        "domain_boolean/test": next(
            document.text for document in bundled_documents() if document.source == data["domain_boolean"][0]["source"]
        ),
        "domain_span/test": data["domain_span"][0]["context"],
        "wikitext-2/test": "".join(data["wikitext2"][:60]),
    }
    for name, leak in leaks.items():
        with pytest.raises(UserError, match=f"(overlaps|repeats questions of) {name}"):
            refuse_overlap([leak], {name: texts[name]})


def test_the_same_texts_are_compared_once(monkeypatch) -> None:
    counted = []
    original = contamination.ngrams
    monkeypatch.setattr(contamination, "ngrams", lambda texts, n: counted.append(n) or original(texts, n))
    training = [SENTENCE, "A text that no other test of this file compares with anything, so that it is new here."]
    found = refuse_overlap(training, {"a": ["short"], "b": ["another"]})
    found.clear()  # the caller's own
    assert set(refuse_overlap(training, {"a": ["short"], "b": ["another"]})) == {"a", "b"}
    assert len(counted) == 3  # of the training text and two sets
    refuse_overlap(training, {"a": ["short", "another"], "b": []})
    assert len(counted) == 6


def test_an_overlap_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="overlaps squad"):
            refuse_overlap([SENTENCE], {"squad": [SENTENCE]})
    assert refuse_overlap([SENTENCE], {"squad": [SENTENCE]}, max_share=1.0)["squad"].share == 1.0
