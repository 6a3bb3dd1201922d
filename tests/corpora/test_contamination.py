"""What is trained on does not repeat what is scored."""

from __future__ import annotations

import pytest

from edgequant.corpora.contamination import measure_overlap, refuse_overlap, words_of
from edgequant.errors import UserError

SENTENCE = "the boats left the jetty at dawn and carried nine people each across the flooded lagoon to the school"


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
