"""The bundled corpus and its questions hold what their description promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgequant.corpora.disaster.corpus import DOCUMENTS, boolean_questions, bundled_documents, span_questions
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

TYPES = {"sop", "guideline", "field_report", "directive", "checklist", "situation_report"}
HAZARDS = {"flood", "cyclone", "landslide", "tsunami", "drought", "epidemic"}


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
        for part in process_file(str(path), path.name, None, CorpusSettings(), count).parts:
            found += [(document.domain, document.language, chunk) for chunk in part.chunks]
    return found


def test_sixty_documents_of_all_types_and_hazards_flood_first() -> None:
    documents = bundled_documents()
    assert len(documents) >= 60
    assert {document.document_type for document in documents} == TYPES
    assert {document.hazard_type for document in documents} == HAZARDS
    assert Counter(document.hazard_type for document in documents).most_common(1)[0][0] == "flood"
    assert all(document.license == "MIT" and document.standard for document in documents)


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
            result = process_file(str(path), path.name, None, CorpusSettings(), count)
            numbers[document.language] += sum(len(part.chunks) for part in result.parts)
    assert min(numbers["si"], numbers["ta"]) >= 30


def test_the_bundled_questions_pass_their_checker() -> None:
    assert bundled_faults() == []
    assert len(boolean_questions()) >= 300 and len(span_questions()) >= 300


def test_every_span_starts_where_it_says() -> None:
    for question in span_questions():
        for text, start in zip(question["answers"]["text"], question["answers"]["answer_start"], strict=True):
            assert question["context"][start : start + len(text)] == text


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
