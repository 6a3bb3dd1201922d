"""WikiText-2 as one string, page by page, and with its spaced punctuation undone."""

from __future__ import annotations

import re
from collections.abc import Sequence


def join_rows(rows: Sequence[str], join: str) -> str:
    """The split as one string: `raw` gives the official file's characters, `paragraphs` the GPTQ papers' '\\n\\n'.join.

    A blank row of the hub's data set stands for the file's line `' \\n'`.
    """
    return "\n\n".join(rows) if join == "paragraphs" else "".join(row or " \n" for row in rows)


def wikitext_pages(text: str) -> list[str]:
    """The split page by page: a page begins at a top-level heading, ` = Title = `."""
    pages: list[str] = []
    page: list[str] = []
    for line in text.split("\n"):
        if _begins_page(line):
            pages.append("\n".join(page))
            page = []
        page.append(line)
    return [page for page in [*pages, "\n".join(page)] if page.strip()]


def articles(rows: Sequence[str]) -> list[list[str]]:
    """Rows of the split article by article; what stands before the first heading goes with it.

    A heading stands between blank rows: a formula that begins and ends with a sign of equality does not.
    (`wikitext_pages`, which is lm-evaluation-harness's, takes two such formulas of the test split for headings.)
    """
    found: list[list[str]] = [[]]
    for above, row, below in zip(["", *rows], rows, [*rows[1:], ""], strict=False):
        alone = not above.strip() and not below.strip()
        if alone and _begins_page(row) and any(each.strip() for each in found[-1]):
            found.append([])
        found[-1].append(row)
    return found


def _begins_page(line: str) -> bool:
    heading = line.replace("= = =", "===").replace("= =", "==").strip()
    return heading.startswith("= ") and heading.endswith(" =")


# lm-evaluation-harness undoes WikiText's spacing with these, in this order; the results are only comparable with all.
_REPLACEMENTS_BEFORE = (
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" : ", ": "), (" ; ", "; "), (" . ", ". "),
    (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
_PAIRED = (
    r"\(\s*([^\)]*?)\s*\)",
    r"\[\s*([^\]]*?)\s*\]",
    r"{\s*([^}]*?)\s*}",
    r"\"\s*([^\"]*?)\s*\"",
    r"'\s*([^']*?)\s*'",
)
_BRACKETS = (r"(\1)", r"[\1]", r"{\1}", r'"\1"', r"'\1'")
_REPLACEMENTS_AFTER = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "),
    (" 's", "'s"),
)  # fmt: skip


def detokenize(page: str) -> str:
    """WikiText's spaced punctuation as ordinary text, exactly as lm-evaluation-harness's `wikitext` task has it."""
    for old, new in _REPLACEMENTS_BEFORE:
        page = page.replace(old, new)
    for pattern, replacement in zip(_PAIRED, _BRACKETS, strict=True):
        page = re.sub(pattern, replacement, page)
    for old, new in _REPLACEMENTS_AFTER:
        page = page.replace(old, new)
    return page
