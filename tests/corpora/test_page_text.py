"""Running heads, contents and form fields go, each with its reason; broken words and paragraphs come together."""

from __future__ import annotations

import time

from edgequant.corpora.text.boilerplate import Page, remove_boilerplate
from edgequant.corpora.text.paragraphs import blocks_of_pages


def pages_with(bodies: list[list[str]]) -> list[Page]:
    return [
        Page(n, ["Flood Manual 2019", f"Chapter {n // 3}", *body, f"Page {n} of {len(bodies)}"])
        for n, body in enumerate(bodies, 1)
    ]


def test_running_heads_and_page_numbers_are_removed_with_reasons() -> None:
    kept, removed = remove_boilerplate(pages_with([[f"Body text number {n} says this."] for n in range(9)]))
    assert [page.lines for page in kept] == [[f"Body text number {n} says this."] for n in range(9)]
    assert {item.reason for item in removed} == {"running header", "page number"}


def test_a_word_that_ends_several_paragraphs_is_no_footer() -> None:
    bodies = [
        ["The team counts all of the", "resources."] if n % 7 == 0 else ["Another day.", "It rained."]
        for n in range(40)
    ]
    pages = [Page(n, [f"Line {'x' * (n % 7)} opens the page.", *body]) for n, body in enumerate(bodies)]
    _, removed = remove_boilerplate(pages)
    assert not any(item.text == "resources." for item in removed)


def test_contents_entries_and_form_blanks_are_removed() -> None:
    lines = [
        "Contents",
        "Water ........ 4",
        "Shelter ...... 9",
        "Prepared by: Name: Signature:",
        "Level: ____",
        "Boil the water.",
    ]
    kept, removed = remove_boilerplate([Page(1, lines[3:]), Page(2, lines[:3])])
    assert kept[0].lines == ["Boil the water."]
    assert [item.reason for item in removed] == ["form field", "form field", *["table of contents"] * 3]


def test_a_word_broken_at_a_line_end_becomes_whole_and_a_compound_keeps_its_hyphen() -> None:
    page = Page(1, ["The evac-", "uation of the well-", "known camp began. Well-known crews", "worked."])
    blocks, joined = blocks_of_pages([page])
    assert blocks[0].text == "The evacuation of the well-known camp began. Well-known crews worked."
    assert joined == 2


def test_a_sentence_goes_on_across_a_page_break() -> None:
    blocks, _ = blocks_of_pages([Page(1, ["The boats carried the families"]), Page(2, ["to the school before dark."])])
    assert [block.text for block in blocks] == ["The boats carried the families to the school before dark."]


def test_bullets_and_headings_become_blocks_of_their_own() -> None:
    wide = "This line is as wide as the page and so sets what counts as a short line here."
    page = Page(1, [wide, "Water Supply", wide, "• boil it", "• cover it"])
    blocks, _ = blocks_of_pages([page])
    assert [block.kind for block in blocks] == ["text", "heading", "text", "item", "item"]


def test_a_table_of_thousands_of_lines_takes_no_square_of_its_length() -> None:
    row = ",".join(str(number / 7) for number in range(30))
    began = time.process_time()
    blocks, joined = blocks_of_pages([Page(1, [row] * 3000)])
    assert time.process_time() - began < 3, "seconds; a search through all that stands before each line takes twenty"
    assert len(blocks) == 1 and joined == 0 and len(blocks[0].text) == 3000 * (len(row) + 1) - 1
