"""The bundled corpus and its questions hold what their description promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from edgequant.corpora.curation.annotation import shingles
from edgequant.corpora.disaster.corpus import (
    DOCUMENTS,
    boolean_questions,
    bundled_documents,
    closed_book_questions,
    instructions,
    span_questions,
)
from edgequant.corpora.disaster.domain_classifier import classify, held_out_report
from edgequant.corpora.disaster.questions import (
    bundled_faults,
    check_boolean,
    check_spans,
    harden_boolean,
    overlap_accuracy,
    window_answer,
)
from edgequant.corpora.documents import DOMAINS, read_document
from edgequant.corpora.output.data_card import most_repeated
from edgequant.corpora.text.chunking import Chunk
from edgequant.errors import UserError

HELD_OUT = "d3fc09af7f70d61bfe93804ef963badec6638d85e0a48f17ada3d4917d82bd66"  # English validation and test documents
TYPES = {"sop", "guideline", "field_report", "directive", "checklist", "situation_report"}  # of the field
INVENTED = ("invented", "made up", "fictitious", "exercise", "composite", "composed", "nowhere", "simulation")
VOICES = {
    *("after_action_review", "bulletin", "dialogue", "explainer", "faq", "glossary", "handout", "interview"),
    *("lesson_plan", "letter", "minutes", "plan", "radio_transcript", "technical_note"),
}
HAZARDS = {"flood", "cyclone", "landslide", "tsunami", "drought", "epidemic", "earthquake", "heat", "fire", "wildfire"}


@pytest.fixture(scope="module")
def chunks() -> list[tuple[str, str, Chunk]]:
    """(domain, language, chunk) of all bundled documents, cut by words: 1.3 tokens per English word, roughly."""
    from edgequant.corpora.processing.file_processing import process_file
    from edgequant.corpora.settings import CorpusSettings

    def count(texts: Sequence[str]) -> list[int]:
        return [round(1.3 * len(text.split())) for text in texts]

    found = []
    for document in bundled_documents():
        path = DOCUMENTS / document.source
        for part in process_file(str(path), path.name, CorpusSettings(), count).parts:
            found += [(document.domain, document.language, chunk) for chunk in part.chunks]
    return found


def test_documents_of_all_types_and_hazards_flood_first() -> None:
    documents = bundled_documents()
    assert len(documents) == 128
    assert {document.document_type for document in documents} == TYPES | VOICES
    assert {document.hazard_type for document in documents} == HAZARDS | {"chemical", "multiple"}
    assert Counter(document.hazard_type for document in documents).most_common(1)[0][0] == "flood"
    assert all(document.license == "MIT" and document.standard for document in documents)


def test_80_000_english_training_words_by_more_voices_than_reports() -> None:
    training = [document for document in bundled_documents("train") if document.language == "en"]
    words = Counter[str]()
    for document in training:
        words[document.document_type] += len(document.text.split())
    assert words.total() >= 80_000
    assert sum(words[voice] for voice in VOICES) >= 0.4 * words.total()
    assert min(Counter(document.domain for document in training)[name] for name in DOMAINS) >= 13


def test_what_is_measured_on_stays_as_it_was_when_training_documents_are_added() -> None:
    held_out = [document for document in bundled_documents() if document.split != "train" and document.language == "en"]
    text = "\n".join(document.text for document in held_out)
    assert len(held_out) == 24 and sha256(text.encode()).hexdigest() == HELD_OUT


def test_no_document_passes_for_a_report_of_a_real_agency_or_event() -> None:
    for document in bundled_documents():
        assert document.agency.endswith("(fictional)"), document.source
        told = document.text.lower()
        assert document.setting in ("invented", "exercise", "composite", "general"), document.source
        if document.setting in ("exercise", "composite"):
            assert any(word in told for word in INVENTED), document.source


def test_no_two_passages_of_the_corpus_are_nearly_the_same(chunks: list[tuple[str, str, Chunk]]) -> None:
    grams = [shingles(chunk.text) for _, _, chunk in chunks]
    where: dict[str, list[int]] = {}
    shared = Counter[tuple[int, int]]()
    for number, own in enumerate(grams):
        for gram in own:
            shared.update((other, number) for other in where.setdefault(gram, []))
            where[gram].append(number)
    (one, other), alike = shared.most_common(1)[0]
    assert alike < 0.3 * len(grams[one] | grams[other]), (chunks[one], chunks[other])


def test_550_chunks_and_80_in_every_domain(chunks: list[tuple[str, str, Chunk]]) -> None:
    assert len(chunks) >= 550
    assert min(Counter(domain for domain, _, _ in chunks)[name] for name in DOMAINS) >= 80


def test_no_8_gram_in_more_than_2_percent_of_chunks(chunks: list[tuple[str, str, Chunk]]) -> None:
    gram, share = most_repeated([chunk.text for _, _, chunk in chunks])
    assert share <= 0.02, gram


def test_30_chunks_each_in_sinhala_and_tamil_with_a_real_tokenizer(data_dir: Path) -> None:
    from edgequant.corpora.processing.file_processing import process_file
    from edgequant.corpora.settings import CorpusSettings
    from edgequant.corpora.text.tokens import TokenCounter

    count = TokenCounter(data_dir / "tokenizers" / "qwen2.5-0.5b" / "tokenizer.json")
    numbers: Counter[str] = Counter()
    for document in bundled_documents():
        if document.language != "en":
            path = DOCUMENTS / document.source
            result = process_file(str(path), path.name, CorpusSettings(), count)
            numbers[document.language] += sum(len(part.chunks) for part in result.parts)
    assert min(numbers["si"], numbers["ta"]) >= 30


def test_the_bundled_questions_pass_their_checker() -> None:
    assert bundled_faults() == []
    assert len(boolean_questions()) >= 300 and len(span_questions()) >= 300


@pytest.mark.parametrize("language", ["en", "si", "ta"])
def test_every_answer_starts_where_it_says_and_a_paraphrase_beside_the_context_nowhere(language: str) -> None:
    for question in span_questions(language):
        for text, start in zip(question["answers"]["text"], question["answers"]["answer_start"], strict=True):
            assert start == question["context"].find(text) or question["context"][start : start + len(text)] == text
    for question in span_questions(language, paraphrased=False):
        assert min(question["answers"]["answer_start"]) >= 0


@pytest.mark.parametrize("language", ["si", "ta"])
def test_two_test_documents_each_in_sinhala_and_tamil_have_questions_of_both_kinds(language: str) -> None:
    documents = {document.source for document in bundled_documents("test") if document.language == language}
    for rows, fewest in ((boolean_questions(language), 12), (span_questions(language), 7)):
        asked = Counter(row["source"] for row in rows)
        assert set(asked) == documents and len(documents) >= 2
        assert min(asked.values()) >= fewest


def test_an_unknown_language_is_refused_with_those_that_there_are() -> None:
    for rows in (boolean_questions, span_questions, closed_book_questions, instructions):
        with pytest.raises(UserError, match="language must be one of en, si, ta, got 'fr'"):
            rows("fr")


def test_the_checker_finds_a_foreign_passage_a_wrong_split_and_a_missing_span() -> None:
    item = boolean_questions()[0]
    train = bundled_documents("train")[0]
    wrong = [
        {**item, "passage": "Nobody wrote this."},
        {**item, "id": "x", "source": train.source, "domain": train.domain},
    ]
    faults = "\n".join(check_boolean(wrong))
    assert "not verbatim" in faults and "in split train, not held out" in faults
    span = {**span_questions()[0], "answers": ["no such span"]}
    assert "is not in its context" in "\n".join(check_spans([span]))
    assert "is in language en, not si" in "\n".join(check_boolean([item], "si"))


def test_the_overlap_baseline_sees_through_an_easy_set_and_the_filter_makes_it_harder() -> None:
    passage = "nine boats left the jetty at dawn"
    easy = [
        {"id": f"{n:04}", "question": question, "passage": passage, "answer": bool(n % 2)}
        for n in range(600)
        for question in ["did nine boats leave the jetty" if n % 2 else f"were planes late on day {n}"]
    ]
    assert overlap_accuracy(easy) > 0.7
    assert len(harden_boolean(easy)) < len(easy)


def test_the_window_baseline_picks_the_number_among_the_questions_words() -> None:
    context = "In 1998 the school held 40 people. The large red boat from Galle carried 12 sacks of rice."
    assert window_answer("How many sacks of rice did the red boat carry?", context) == "12 sacks"


def test_held_out_documents_are_classified_at_least_as_well_as_documented() -> None:
    report = held_out_report("test")
    assert report.accuracy >= 0.85  # docs/corpora.md: 0.899 on 208 passages
    assert min(report.f1.values()) >= 0.6


def test_text_of_no_domain_is_labeled_so(data_dir: Path) -> None:
    from edgequant.corpora.benchmarks import load_wikitext2

    articles = [row for row in load_wikitext2("test", data_dir) if len(row.split()) > 60][:100]
    assert sum(found.name == "none" for found in classify([articles])[0]) >= 90


def test_clear_text_gets_its_domain() -> None:
    texts = {
        "Water Sanitation & Hygiene": "Chlorinate the dug well, test the residual and post the latrine cleaning rota.",
        "Medical & Health Care": "The clinic nurse gave rehydration salts and referred the patient with fever.",
        "Waste Management": "Collect refuse from the bins, sort debris from asbestos, and haul it to the landfill.",
    }
    for domain, text in texts.items():
        assert classify([[text]])[0][0].name == domain


def test_a_document_without_its_front_matter_is_refused_with_what_is_missing(tmp_path: Path, root: Callable) -> None:
    (tmp_path / "a.md").write_text("---\ntitle: T\n---\nText.")
    with pytest.raises(
        UserError, match=r"document_type, hazard_type, .* not found in the front matter, which must have title"
    ):
        read_document(tmp_path / "a.md")
