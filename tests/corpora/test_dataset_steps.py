"""Duplicates out, splits by document, augmentation that keeps labels, metadata from what documents say."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pytest
from datasketch import MinHash

from edgequant.corpora.curation import annotation
from edgequant.corpora.curation.annotation import Row, _minhash, annotate
from edgequant.corpora.curation.augmentation import augment, shifted_window, with_synonyms
from edgequant.corpora.curation.deduplication import find_near_duplicates
from edgequant.corpora.curation.metadata import describe, language_of
from edgequant.corpora.curation.splits import assign_splits
from edgequant.corpora.disaster.domain_classifier import Domain
from edgequant.corpora.processed_file import ProcessedFile, ProcessedPart
from edgequant.corpora.processing.pipeline import assemble
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.text.chunking import Chunk
from edgequant.files import sha256_of_bytes

WORDS = "river boat rope crew camp rain road food tent pump well lamp dose ward rice salt mat net gate hill".split()  # noqa: SIM905


def row(text: str) -> Row:
    return Row({"text": text, "source": "a", "page": 1, "section": ""}, "d", "", _minhash(text))


def prose(seed: int, length: int = 80) -> str:
    return " ".join(WORDS[(seed * 7 + i * i + i // 3) % len(WORDS)] + str(seed * i % 11) for i in range(length))


def test_a_chunk_with_one_word_changed_is_a_duplicate_and_another_text_is_not() -> None:
    changed = prose(1).split()
    changed[40] = "changed"
    rows = [row(prose(1)), row(prose(2)), row(" ".join(changed))]
    assert find_near_duplicates(rows, ["train"] * 3, 0.8) == {2: 0}


def test_all_chunks_are_hashed_by_permutations_that_are_drawn_once(monkeypatch) -> None:
    drawn = []
    draw = MinHash._init_permutations
    monkeypatch.setattr(MinHash, "_init_permutations", lambda self, count: drawn.append(count) or draw(self, count))
    annotation._empty_sketch.cache_clear()
    rows = [row(prose(seed)) for seed in range(4)]
    find_near_duplicates(rows, ["train"] * 4, 0.8)
    assert drawn == [annotation.PERMUTATIONS]
    alone = MinHash(num_perm=annotation.PERMUTATIONS, seed=1)
    alone.update_batch([shingle.encode() for shingle in annotation.shingles(prose(3))])
    assert base64.b64decode(rows[3].minhash) == alone.hashvalues.astype("<u4").tobytes()


def test_of_two_copies_the_training_one_goes() -> None:
    assert find_near_duplicates([row(prose(1)), row(prose(1))], ["train", "test"], 0.8) == {0: 1}


def test_a_document_keeps_its_split_when_files_are_added() -> None:
    documents = {sha256_of_bytes(f"document {n}"): "" for n in range(200)}
    few = dict(list(documents.items())[:60])
    before, after = assign_splits(few, 0.1, 0.1), assign_splits(documents, 0.1, 0.1)
    assert all(after[document] == split for document, split in before.items())
    assert {split: list(after.values()).count(split) > 5 for split in ("train", "validation", "test")} == dict.fromkeys(
        ("train", "validation", "test"), True
    )


def test_stated_splits_are_kept_and_small_collections_get_every_split() -> None:
    assert assign_splits({"ff" * 32: "test"}, 0.1, 0.1) == {"ff" * 32: "test"}
    drawn_to_train = {f"{n:x}f".ljust(64, "0"): "" for n in range(9, 15)}
    assert set(assign_splits(drawn_to_train, 0.1, 0.1).values()) == {"train", "validation", "test"}


@pytest.mark.parametrize("draws", [["0"], ["2"], ["1", "2"], ["0", "1", "2"]])  # sixteenths of [0, 1)
def test_a_collection_of_which_all_is_drawn_to_be_held_out_has_text_to_train_on(draws: list[str]) -> None:
    assigned = assign_splits({draw.ljust(64, "0"): "" for draw in draws}, 0.1, 0.1)
    assert [document[0] for document, split in assigned.items() if split == "train"] == draws[-1:]


def test_held_out_copies_of_all_training_text_are_what_is_trained_on() -> None:
    held_out, copy = row(prose(1)), row(prose(1))
    held_out, copy = held_out._replace(document="0" * 64), copy._replace(document="f" * 64)
    files = [(ProcessedFile(name), [made]) for name, made in (("a", held_out), ("b", copy))]
    kept = assemble(files, count_words, CorpusSettings()).rows
    assert {split: len(rows) for split, rows in kept.items()} == {"train": 1, "validation": 0, "test": 0}


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def training_rows(domain: str, number: int, text: str) -> list[dict]:
    shared = {"domain": domain, "language": "en", "source": "a", "tokens": 9, "augmented": False}
    return [{**shared, "text": text} for _ in range(number)]


def test_only_scarce_domains_are_augmented_and_results_are_marked_and_labeled() -> None:
    text = "People began to leave. Several families stayed. However, the crew came every day."
    rows = training_rows("Food & Nutrition", 10, text) + training_rows("Waste Management", 2, text)
    added = augment(rows, 0.4, count_words, 150)
    assert [item["domain"] for item in added] == ["Waste Management"] * 2
    assert all(item["augmented"] and item["text"] != text for item in added)


def test_synonyms_leave_numbers_and_negations_alone() -> None:
    text = "Several people started to boil 20 litres immediately. Do not give 5 ml to families."
    changed = with_synonyms(text)
    assert changed is not None and changed != text
    for kept in ("20 litres", "Do not give 5 ml"):
        assert kept in changed
    assert with_synonyms("The pump broke.") is None


def test_the_shifted_window_is_made_of_whole_sentences_in_any_script() -> None:
    assert shifted_window("එක. දෙක. තුන. හතර.", "පහ. හය.") == "තුන. හතර. පහ."
    assert shifted_window("Only one sentence.", "A. B.") is None


def test_the_name_and_title_of_a_document_outweigh_its_text() -> None:
    found = describe(
        "flood-sop.pdf", {"title": "Flood rescue SOP"}, "A cyclone came. A cyclone left. See the guideline."
    )
    assert found["document_type"] == "sop" and found["hazard_type"] == "flood"


def test_what_nothing_tells_is_unknown_and_what_is_stated_is_taken() -> None:
    assert set(describe("a.txt", {}, "Nothing here says anything.").values()) == {"unknown"}
    assert describe("a.txt", {"agency": "Kalu Ganga Desk"}, "FEMA FEMA FEMA")["agency"] == "Kalu Ganga Desk"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The families were moved to the school before the river rose again during the night.", "en"),
        ("Les familles ont été déplacées vers l'école avant que la rivière ne monte encore.", "fr"),
        ("ගඟ උතුරා යාමට පෙර පවුල් පාසලට ගෙන යන ලදී.", "si"),
        ("ஆறு பெருக்கெடுப்பதற்கு முன் குடும்பங்கள் பள்ளிக்கு மாற்றப்பட்டன.", "ta"),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language_of(text) == code


def test_a_domain_that_a_document_states_is_taken_and_only_others_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[list[str]]] = []

    def classify(documents: list[list[str]]) -> list[list[Domain]]:
        asked.append(documents)
        return [[Domain("medical", 0.7) for _ in chunks] for chunks in documents]

    def part(fields: dict[str, str], *texts: str) -> ProcessedPart:
        return ProcessedPart(fields, [Chunk(text, len(text), 1, "") for text in texts], [])

    monkeypatch.setattr(annotation, "classify", classify)
    stated, odd = {"domain": " Food  &\nNutrition "}, {"domain": "cookery"}
    files = [
        ProcessedFile("a", parts=[part(stated, "rice", "salt"), part({}, "fever")]),
        ProcessedFile("b", parts=[part(odd, "ward")]),
    ]
    found = [
        [(row.columns["text"], row.columns["domain"], row.columns["domain_confidence"]) for row in rows]
        for rows in annotate(files, "")
    ]
    food = "Food & Nutrition"
    assert found == [[("rice", food, 1.0), ("salt", food, 1.0), ("fever", "medical", 0.7)], [("ward", "medical", 0.7)]]
    assert asked == [[["fever"], ["ward"]]]

    annotate([ProcessedFile("c", parts=[part(stated, "rice")])], "")
    assert len(asked) == 1  # the classifier, whose fitting takes seconds, was not needed
