"""Every format gives its text; nothing unreadable passes for text, and its reason is named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from edgequant.corpora.extraction.extract import extract, kind_of
from edgequant.corpora.extraction.extracted import ExtractionError
from edgequant.corpora.processing.file_processing import process_content, process_file
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import list_files

SENTENCE = "The boats left the jetty at dawn and came back with nine people. "
LIMIT = 50_000_000


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def texts_of(content: bytes, name: str) -> list[str]:
    extraction = extract(content, name, LIMIT)
    return [block.text for part in extraction.parts for block in part.blocks]


def test_html_gives_visible_text_and_lists_navigation_as_removed() -> None:
    page = (
        b"<html><body><nav>Home</nav><h1>Wells</h1><p>Boil &amp; <b>cover</b> it.</p><script>x()</script></body></html>"
    )
    extraction = extract(page, "a.html", LIMIT)
    assert [(block.kind, block.text) for block in extraction.parts[0].blocks] == [
        ("heading", "Wells"),
        ("text", "Boil & cover it."),
    ]
    assert [item.text for item in extraction.parts[0].removed] == ["Home"]


def test_markdown_front_matter_becomes_metadata_and_marks_go() -> None:
    text = "---\nhazard_type: flood\n---\n# Title\n\nUse **two** [pumps](http://x.org).\n\n- [ ] Check it.\n"
    extraction = extract(text.encode(), "a.md", LIMIT)
    assert extraction.parts[0].fields == {"hazard_type": "flood"}
    assert texts_of(text.encode(), "a.md") == ["Title", "Use two pumps (http://x.org).", "Check it."]


def test_docx_gives_paragraphs_and_table_rows() -> None:
    import docx

    document = docx.Document()
    document.add_heading("Plan", 1)
    document.add_paragraph("Boil the water.")
    cells = document.add_table(1, 2).rows[0].cells
    cells[0].text, cells[1].text = "dose", "5 ml"
    buffer = io.BytesIO()
    document.save(buffer)
    assert texts_of(buffer.getvalue(), "a.docx") == ["Plan", "Boil the water.", "dose; 5 ml"]


def test_records_keep_their_stated_metadata_and_are_documents_of_their_own() -> None:
    rows = [{"chunk": "Water came.", "metadata": {"doc_type": "sop", "disaster_type": "flood"}}, {"chunk": "It left."}]
    parts = extract(json.dumps(rows).encode(), "a.json", LIMIT).parts
    assert [part.fields for part in parts] == [{"document_type": "sop", "hazard_type": "flood"}, {}]


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b"", "a.txt", "empty file"),
        (b" \n \x00", "a.txt", "only blanks"),
        (b"\x89PNG\r\n\x1a\n123", "a.pdf", "PNG image"),
        (bytes(range(256)) * 40, "a.txt", "binary data"),
        (b"%PDF-1.4\n garbage", "a.pdf", "damaged PDF"),
        (b"PK\x03\x04 broken", "a.docx", "damaged zip or docx"),
        (b'{"a": ', "a.json", "not JSON"),
        (b'[{"title": "no text"}]', "a.json", "records must be strings, or objects with one of .*, got none with text"),
        (b"<html><body><script>x</script></body></html>", "a.html", "without visible text"),
    ],
)
def test_what_gives_no_text_says_why(content: bytes, name: str, reason: str) -> None:
    with pytest.raises(ExtractionError, match=reason):
        extract(content, name, LIMIT)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_text_is_read_in_its_encoding(encoding: str) -> None:
    result = process_content((SENTENCE * 20 + "Café.").encode(encoding), "a.txt", CorpusSettings(), words)
    assert result.parts[0].chunks[-1].text.endswith("Café.")


def test_the_content_decides_and_a_wrong_extension_is_a_warning(data_dir: Path) -> None:
    pdf = (data_dir / "disaster" / "fema-pdf" / "ready-flood-guide.pdf").read_bytes()
    assert kind_of(pdf, "notes.txt") == "pdf"
    assert "named .txt but is pdf" in extract(pdf, "notes.txt", LIMIT).warnings
    assert extract(SENTENCE.encode(), "a.pdf", LIMIT).warnings == ["named .pdf but is text"]


def test_an_owner_encrypted_pdf_is_read(data_dir: Path) -> None:
    content = (data_dir / "disaster" / "fema-pdf" / "fema-ics-for-utilities.pdf").read_bytes()
    extraction = extract(content, "a.pdf", LIMIT)
    assert sum(len(line.split()) for page in extraction.parts[0].pages for line in page.lines) == 1_548


def test_every_word_of_a_pdf_is_in_a_chunk_removed_or_joined(data_dir: Path) -> None:
    from edgequant.corpora.text.normalization import count_words

    path = data_dir / "disaster" / "fema-pdf" / "fema-ics-form-201.pdf"
    result = process_file(str(path), path.name, CorpusSettings(), words)
    in_chunks = sum(count_words(chunk.text) for part in result.parts for chunk in part.chunks)
    removed = sum(count_words(item.text) for part in result.parts for item in part.removed)
    assert result.words == in_chunks + removed + result.joined > 900


def test_listing_survives_loops_pipes_and_odd_names(tmp_path: Path) -> None:
    import os

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "outside").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "two\nlines.txt").write_text(SENTENCE)
    found = {file.name: file.refused for file in list_files(tmp_path)}
    assert found.pop("two\\nlines.txt") == ""
    assert set(found) == {"a/up", "self", "outside", "pipe"} and all(found.values())
