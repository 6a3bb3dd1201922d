"""A document's text is what its reader sees, in the order in which it is read; records keep theirs."""

from __future__ import annotations

import io
import json

import pytest
from odd_documents import AUTHORS_AND_DATA, HIDDEN, LEFT, RIGHT, columns_pdf

from edgequant.corpora.extraction.extract import extract
from edgequant.corpora.extraction.extracted import Extraction, ExtractionError

LIMIT = 50_000_000


def page_of(content: bytes) -> tuple[list[str], list[str]]:
    """Lines of a PDF's only page, and warnings."""
    extraction = extract(content, "a.pdf", LIMIT)
    return [line for line in extraction.parts[0].pages[0].lines if line], extraction.warnings


def records_of(value: object, name: str = "a.json") -> tuple[list[str], Extraction]:
    extraction = extract(json.dumps(value).encode(), name, LIMIT)
    return [" ".join(block.text for block in part.blocks) for part in extraction.parts], extraction


def shown_in(body: str) -> list[str]:
    extraction = extract(f"<html><body><p>Seen.</p>{body}</body></html>".encode(), "a.html", LIMIT)
    return [block.text for block in extraction.parts[0].blocks][1:]


# ------------------------------------------------------------------------------------------------------------------ PDF


def test_columns_drawn_row_by_row_are_read_one_after_the_other() -> None:
    lines, warnings = page_of(columns_pdf())
    assert lines == [*LEFT.split("\n"), *RIGHT.split("\n")]
    assert warnings == ["1 page in columns that were drawn row by row, read column by column"]


def test_columns_drawn_one_after_the_other_are_left_as_they_are() -> None:
    lines, warnings = page_of(columns_pdf(by_row=False))
    assert lines == [*LEFT.split("\n"), *RIGHT.split("\n")] and not warnings


def test_columns_of_unequal_length_lose_nothing() -> None:
    short = "\n".join(RIGHT.split("\n")[:6])
    assert page_of(columns_pdf(LEFT, short))[0] == [*LEFT.split("\n"), *short.split("\n")]
    assert page_of(columns_pdf(short, LEFT))[0] == [*short.split("\n"), *LEFT.split("\n")]


def test_the_rows_of_a_table_stay_together() -> None:
    names, values = "Name\nDate\nPlace\nLeader\nBoats\nLevel", "Kalu\n12 May\nGalle\nPerera\n14\n3 m"
    lines, warnings = page_of(columns_pdf(names, values))
    assert lines == [f"{name} {value}" for name, value in zip(names.split("\n"), values.split("\n"), strict=True)]
    assert not warnings


def test_where_a_table_and_columns_look_alike_it_is_said() -> None:
    names = "\n".join(f"Task number {n} of the crew." for n in range(8))
    values = "\n".join(f"Team {n} takes care of it." for n in range(8))
    lines, warnings = page_of(columns_pdf(names, values))
    assert lines[0] == "Task number 0 of the crew. Team 0 takes care of it."
    assert warnings == [
        "1 page in columns or a table, drawn and read row by row; look whether sentences are mixed",
    ]


# ----------------------------------------------------------------------------------------------------------------- HTML


@pytest.mark.parametrize(
    "body",
    [
        "<p hidden>no</p>", "<div hidden=''><div><p>no</p></div></div>", '<p style="display:none">no</p>',
        '<p style="color: red; DISPLAY : none !important">no</p>', '<p style="visibility: hidden;">no</p>',
        '<p style="opacity:0">no</p>', '<p style="font-size:0px">no</p>', "<dialog><p>no</p></dialog>",
        "<template><p>no</p></template>", "<noscript>no</noscript>", '<span aria-hidden="true">no</span>',
        "<video>no</video>",
    ],
)  # fmt: skip
def test_what_a_browser_does_not_show_is_no_text(body: str) -> None:
    assert shown_in(body) == []


@pytest.mark.parametrize(
    "body",
    [
        '<p hidden="until-found">yes</p>', '<p style="opacity:0.5">yes</p>', '<p style="font-size:0.9em">yes</p>',
        '<p class="hidden">yes</p>', '<div aria-hidden="true"><p>yes</p></div>', '<p aria-hidden="false">yes</p>',
        '<p style="overflow:hidden">yes</p>', "<dialog open><p>yes</p></dialog>",
        "<details><summary>yes</summary></details>",
    ],
)  # fmt: skip
def test_what_a_browser_shows_stays(body: str) -> None:
    assert shown_in(body) == ["yes"]


def test_hidden_text_is_listed_as_removed_once() -> None:
    removed = extract(HIDDEN.encode(), "a.html", LIMIT).parts[0].removed
    assert [item.text for item in removed] == ["SECRET one", "SECRET two", "ORNAMENT", "SECRET five"]
    nested = extract(b"<html><p>Seen.</p><div hidden>a <p hidden>b</p></div></html>", "a.html", LIMIT).parts[0].removed
    assert [(item.text, item.reason) for item in nested] == [("a b", "hidden on the page")]


def test_a_page_whose_body_waits_for_a_script_is_read_and_one_without_more_is_refused() -> None:
    page = b'<html><body style="visibility:hidden"><p>Read me.</p></body></html>'
    assert [block.text for block in extract(page, "a.html", LIMIT).parts[0].blocks] == ["Read me."]
    with pytest.raises(ExtractionError, match="without visible text"):
        extract(b"<html><body><p hidden>Nothing.</p></body></html>", "a.html", LIMIT)


def test_words_that_a_docx_hides_are_listed_as_removed() -> None:
    import docx

    document = docx.Document()
    paragraph = document.add_paragraph("Boil the water.")
    paragraph.add_run(" SECRET").font.hidden = True
    paragraph.add_run(" Cover it.").font.hidden = False
    buffer = io.BytesIO()
    document.save(buffer)
    (part,) = extract(buffer.getvalue(), "a.docx", LIMIT).parts
    assert [block.text for block in part.blocks] == ["Boil the water. Cover it."]
    assert [item.text for item in part.removed] == ["SECRET"]


# -------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    "value, texts",
    [
        ({"authors": ["Ann", "Bo"], "data": [{"text": "One."}, {"text": "Two."}]}, ["One.", "Two."]),
        ({"authors": [{"name": "Ann"}], "rows": [{"chunk": "One."}]}, ["One."]),
        ({"text": "", "data": [{"text": "One."}]}, ["One."]),
        ({"text": "One.", "sections": [{"text": "Two."}, {"body": "Three."}]}, ["One.", "Two.", "Three."]),
        ({"train": [{"text": "One."}], "test": [{"text": "Two."}]}, ["One.", "Two."]),
        ({"data": {"records": [{"text": "One."}]}}, ["One."]),
        ([{"title": "T", "chunks": [{"text": "One."}]}], ["One."]),
    ],
)
def test_records_keep_their_text_wherever_they_stand(value: object, texts: list[str]) -> None:
    assert records_of(value)[0] == texts


def test_of_lists_of_strings_the_longest_is_the_text_and_the_others_are_named() -> None:
    texts, extraction = records_of({"authors": ["Ann", "Bo"], "pages": ["The river rose.", "It fell."]})
    assert texts == ["The river rose.", "It fell."]
    assert extraction.warnings == ["texts taken from 'pages'; 'authors' left out"]


def test_inner_records_inherit_what_the_outer_one_states() -> None:
    value = {"metadata": {"agency": "DMC"}, "title": "T", "chunks": [{"text": "One.", "title": "U"}, {"text": "Two."}]}
    fields = [part.fields for part in records_of([value])[1].parts]
    assert fields == [{"agency": "DMC", "title": "U"}, {"agency": "DMC", "title": "T"}]
    assert records_of(AUTHORS_AND_DATA)[0] == [AUTHORS_AND_DATA["data"][0]["text"]]
