"""More training text for scarce domains, without changing what a text says about the domain.

Back-off chain, per chunk: (1) synonyms, in English, at least three of them; (2) a shifted window: the second half of
the chunk and the first half of the next one of the same document and domain, in any language; (3) nothing.
Numbers, doses, names and negations are never touched. Only training chunks are used; results are marked `augmented`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from edgequant.corpora.documents import NO_DOMAIN
from edgequant.corpora.text.chunking import CountTokens
from edgequant.corpora.text.sentences import split_sentences

# Read left to right: each replacement is safe in every sense in which field documents use the left side.
_SYNONYMS = {
    "although": "even though",
    "approximately": "about",
    "assistance": "help",
    "began": "started",
    "begins": "starts",
    "collected": "gathered",
    "each day": "every day",
    "even though": "although",
    "every day": "each day",
    "families": "households",
    "households": "families",
    "however": "nevertheless",
    "immediately": "at once",
    "in order to": "so as to",
    "inspected": "checked",
    "people": "persons",
    "persons": "people",
    "reported that": "stated that",
    "requires": "needs",
    "roughly": "about",
    "several": "a number of",
    "so that": "in order that",
    "started": "began",
    "starts": "begins",
    "therefore": "for that reason",
    "together with": "along with",
    "volunteers": "volunteer workers",
}
_MIN_SYNONYMS = 3


def augment(rows: Sequence[dict[str, Any]], below: float, count: CountTokens, max_tokens: int) -> list[dict[str, Any]]:
    """Extra rows for domains with fewer than `below` times the largest domain's rows.

    Args:
        rows: Training rows in reading order; each has the data set's columns.
        below: Share of the largest domain, 0 to 1; domains are filled up to it as far as the chain goes.
        count: Token counter.
        max_tokens: Longest chunk; a longer result is not used.

    Returns:
        New rows only, marked `augmented`.
    """
    sizes = Counter(row["domain"] for row in rows if row["domain"] != NO_DOMAIN)
    wanted = int(below * max(sizes.values(), default=0))
    added: list[dict[str, Any]] = []
    for domain in sorted(sizes):
        made = 0
        for text, row in _candidates([row for row in rows if row["domain"] == domain]):
            if sizes[domain] + made >= wanted:
                break
            tokens = count([text])[0]
            if tokens <= max_tokens:
                added.append({**row, "text": text, "tokens": tokens, "augmented": True})
                made += 1
    return added


def _candidates(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Step 1 for all rows, then step 2 for those that step 1 did not serve."""
    left = []
    for position, row in enumerate(rows):
        changed = with_synonyms(row["text"]) if row["language"] == "en" else None
        if changed:
            yield changed, row
        else:
            left.append(position)
    for position in left:
        following = rows[position + 1] if position + 1 < len(rows) else None
        if following and following["source"] == rows[position]["source"]:
            shifted = shifted_window(rows[position]["text"], following["text"])
            if shifted:
                yield shifted, rows[position]


def with_synonyms(text: str) -> str | None:
    """The text with every phrase of the list replaced by its synonym; None where fewer than three occur."""
    pattern = r"\b(" + "|".join(sorted(map(re.escape, _SYNONYMS), key=len, reverse=True)) + r")\b"
    changed, number = re.subn(pattern, lambda match: _SYNONYMS[match.group(1)], text)
    return changed if number >= _MIN_SYNONYMS else None


def shifted_window(text: str, following: str) -> str | None:
    """The later half of one chunk and the earlier half of the next, by sentences; None where either has only one."""
    first = [sentence for line in text.split("\n") for sentence in split_sentences(line)]
    second = [sentence for line in following.split("\n") for sentence in split_sentences(line)]
    if len(first) < 2 or len(second) < 2:
        return None
    return " ".join(first[len(first) // 2 :] + second[: len(second) // 2])
