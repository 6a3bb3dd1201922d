"""Files that hold no words, or far too much markup: each is a line with its reason, or its words are kept."""

from __future__ import annotations

import io
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sandbox import pdf_of

from edgequant.corpora.extraction.extracted import ExtractionError
from edgequant.corpora.processing.file_processing import process_content
from edgequant.corpora.settings import CorpusSettings
from edgequant.errors import UserError
from edgequant.workflows.corpus import corpus

SENTENCE = "The boats left the jetty at dawn and came back with nine people."
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
DOCX = {
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    f'<Override PartName="/word/document.xml" ContentType="{WORD}"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{RELATIONS}"><Relationship Id="r" Type="{OFFICE}" '
    'Target="word/document.xml"/></Relationships>',
}


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def process(content: bytes, name: str):
    return process_content(content, name, CorpusSettings(), words)


def docx_of(document: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (DOCX | {"word/document.xml": document}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (". . . ... !!\n---\n***\n" * 50, "a.txt"),
        ("***\n\n---\n\n...\n" * 50, "a.md"),
        ("<html><body><p>...</p><p>!!!</p></body></html>", "a.html"),
        ('[{"text": "..."}, {"text": "!!"}]', "a.json"),
        ("🙂🙂 — ✓ ─────", "a.txt"),
    ],
)
def test_a_file_of_dots_and_rules_has_no_words_in_it(content, name):
    with pytest.raises(ExtractionError, match="no words in it"):
        process(content.encode(), name)


@given(st.text(alphabet=".,;:!?-–—…*_#|/()[]{}<>'\"🙂✓ \n\t", min_size=1))
def test_no_mix_of_marks_passes_for_text(marks):
    with pytest.raises(ExtractionError):
        process(marks.encode(), "a.txt")


def test_rules_between_sentences_are_listed_as_removed_and_the_words_stay():
    (part,) = process(f"{SENTENCE}\n\n* * *\n\n———\n\n{SENTENCE}\n".encode(), "a.txt").parts
    assert " ".join(chunk.text for chunk in part.chunks).split() == f"{SENTENCE} {SENTENCE}".split()
    assert {item.reason for item in part.removed} == {"no words"}


def test_a_folder_of_dots_alone_is_refused_with_the_files_reason(tmp_path, store, cache):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "dots.txt").write_text("... !!\n" * 20)
    with pytest.raises(UserError, match=r"no text in any of 1 files \(dots\.txt: no words in it\)"):
        corpus(source=str(tmp_path / "in"), output=str(tmp_path / "out"), model="tiny")
    assert not (tmp_path / "out").exists()


def test_a_pdf_of_drawings_alone_is_sent_to_ocr():
    with pytest.raises(ExtractionError, match="no text on any of 1 pages: scanned images; run OCR"):
        process(pdf_of(zlib.compress(b"0 0 100 100 re f")), "scan.pdf")


def test_a_docx_whose_entities_explode_is_damaged():
    entities = [f'<!ENTITY e0 "{"boom " * 100}">']
    entities += [f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 9)]
    namespace = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    text = f'<w:document xmlns:w="{namespace}"><w:body><w:p><w:r><w:t>%s</w:t></w:r></w:p></w:body></w:document>'
    assert process(docx_of(text % SENTENCE), "good.docx").words == len(SENTENCE.split())
    with pytest.raises(ExtractionError, match="damaged DOCX"):
        process(docx_of(f"<!DOCTYPE d [{''.join(entities)}]>{text % '&e8;'}"), "bomb.docx")


def test_markup_nested_beyond_recursion_is_read_or_refused():
    depth = 20_000
    html = b"<div>" * depth + SENTENCE.encode() + b"</div>" * depth
    assert process(html, "deep.html").words == len(SENTENCE.split())
    with pytest.raises(ExtractionError, match="not JSON"):
        process(b"[" * depth + b"]" * depth, "deep.json")
