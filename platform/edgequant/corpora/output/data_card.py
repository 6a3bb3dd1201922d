"""The data card: what a data set holds, in words, tables and two plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgequant.corpora.contamination import ngrams, words_of
from edgequant.corpora.documents import DOMAINS, NO_DOMAIN, SPLITS
from edgequant.corpora.processing.pipeline import Corpus

BUNDLED_NOTICE = (
    "Written for this project: original prose, people and agencies invented. It leans on public standards, which each "
    "document names, but it is **not official guidance** and must not be used to run a response."
)
_REPEATED_GRAM = 8
_SAMPLE_WORDS = 20_000  # type-token ratio falls with length, so it is taken over as many words everywhere


def data_card(corpus: Corpus, description: Mapping[str, str]) -> str:
    """Markdown with counts by split, domain, type, hazard, language and licence, and measures of variety."""
    rows = [row for split in SPLITS for row in corpus.rows[split]]
    notice = BUNDLED_NOTICE if description.get("source") == "bundled" else f"Made from {description.get('source')}."
    counted = "\n\n".join(_count_table(corpus, key) for key in ("domain", "document_type", "hazard_type", "language"))
    own_words = [row["text"] for row in rows if not row["augmented"]]
    return f"""# Disaster-management text chunks

{notice}

{len(rows):,} chunks from {len({row["sha256"] for row in rows}):,} files, cut for the tokenizer of
{description.get("tokenizer")}; digest `{corpus.digest}`.

![chunks per domain](plots/domains.png)
![tokens per chunk](plots/tokens.png)

{counted}

## Licences

{_table(("licence", "files", "chunks"), _licenses(rows))}

## Removed

Every word of every file is in a chunk, in `removed.jsonl` with its reason, or was joined to its other half.

{_table(("reason", "passages", "words"), _removed(corpus.removed))}

## Variety

{_table(("measure", "value"), variety(own_words).items())}

Columns: `text`; `domain` with `domain_confidence` (1.0 where the document states it, else the classifier's
probability; `none` where no domain fits); `document_type`, `hazard_type`, `agency`, `language`; `source` file, `page`
(0: no pages) and `section`; `sha256` of the source file; `licence`; `tokens`; `augmented` (train only).
"""


def variety(texts: Sequence[str]) -> dict[str, str]:
    """Type-token ratio, distinct-1/2/3 over the first 20,000 words, and how many chunks share an 8-gram."""
    words = list(islice((word for text in texts for word in words_of(text)), _SAMPLE_WORDS))
    distinct = {
        n: len(set(zip(*(words[i:] for i in range(n)), strict=False))) / max(len(words) - n + 1, 1) for n in (1, 2, 3)
    }
    return {
        f"type-token ratio (first {len(words):,} words)": f"{distinct[1]:.3f}",
        "distinct-2": f"{distinct[2]:.3f}",
        "distinct-3": f"{distinct[3]:.3f}",
        f"most chunks that share one {_REPEATED_GRAM}-gram": f"{most_repeated(texts)[1]:.2%}",
    }


def most_repeated(texts: Sequence[str], n: int = _REPEATED_GRAM) -> tuple[str, float]:
    """The n-gram that most texts contain, and the share of texts that do."""
    counts = Counter(gram for text in texts for gram in set(ngrams([text], n)))
    if not counts:
        return "", 0.0
    gram, count = max(counts.items(), key=lambda item: (item[1], item[0]))
    return " ".join(gram), count / len(texts)


def _count_table(corpus: Corpus, key: str) -> str:
    values = Counter(str(row[key]) for rows in corpus.rows.values() for row in rows)
    lines = [
        (value, *(sum(row[key] == value for row in corpus.rows[split]) for split in SPLITS), total)
        for value, total in values.most_common()
    ]
    return _table((key, *SPLITS, "all"), lines)


def _licenses(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    names = sorted({row["licence"] for row in rows})
    chosen = {name: [row for row in rows if row["licence"] == name] for name in names}
    return [(name, len({row["sha256"] for row in found}), len(found)) for name, found in chosen.items()]


def _removed(lines: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    passages: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for line in lines:
        reason = line["reason"].split(" of ")[0] if line["reason"].startswith("near-duplicate") else line["reason"]
        passages[reason] += 1
        words[reason] += line["words"]
    return [(reason, number, words[reason]) for reason, number in passages.most_common()]


def _table(heading: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    cells = [heading, ["---"] * len(heading), *lines]
    return "\n".join(
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line) + " |" for line in cells
    )


def save_plots(corpus: Corpus, folder: Path) -> None:
    """Bars of chunks per domain and split, and a histogram of tokens per chunk, as PNG."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True)
    names = [*DOMAINS, NO_DOMAIN]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    left = [0] * len(names)
    for split in SPLITS:
        sizes = [sum(row["domain"] == name for row in corpus.rows[split]) for name in names]
        axes.barh(names, sizes, left=left, label=split)
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("chunks")
    axes.legend()
    figure.savefig(folder / "domains.png", dpi=120)
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist([row["tokens"] for rows in corpus.rows.values() for row in rows], bins=60)
    axes.set_xlabel("tokens per chunk")
    axes.set_ylabel("chunks")
    figure.savefig(folder / "tokens.png", dpi=120)
