"""Perplexity of a text over windows, of documents by domain, and in bits per byte, which compares across tokenizers."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import LanguageModel, Window
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.clusters import cluster_of
from edgequant.evaluation.statistics.sampling import draw
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Paired, Rows, Task
from edgequant.evaluation.tasks.wikitext import articles, detokenize, join_rows, wikitext_pages
from edgequant.progress import progress

if TYPE_CHECKING:
    import numpy as np

    from edgequant.evaluation.statistics.intervals import Bootstrap

DEFAULT_WINDOW = 2048
BLOCK = "block-"  # of neighbouring windows


@dataclass(frozen=True)
class Scored:
    """Windows with what was scored in each: one row per window."""

    rows: list[dict]
    window: int

    def columns(self, *names: str) -> np.ndarray:
        """[windows, names] as floats."""
        import numpy as np

        return np.array([[row[name] for name in names] for row in self.rows], dtype=np.float64).reshape(-1, len(names))

    @property
    def clusters(self) -> list[Hashable]:
        """Rows of one cluster depend on each other; a row that names none, such as a document, is one by itself."""
        return [cluster_of({"id": f"row-{index}"} | row) for index, row in enumerate(self.rows)]

    def perplexity(self, name: str, count: str, bootstrap: Bootstrap) -> dict[str, float]:
        """exp(sum of nats / sum of the column `count`) with bounds."""
        return bootstrap.per_token(name, self.columns("nats", count), self.clusters, exponential=True)


def windows_of(tokens: Sequence[int], window: int, stride: int | None = None, bos: int | None = None) -> list[Window]:
    """Cut one long token sequence into windows of at most `window` tokens.

    Without a stride: floor(N / window) windows side by side, the rest dropped (GPTQ, arXiv:2210.17323, section 5); each
    scores all its tokens but the first, which nothing precedes. With BOS, a window is BOS and window - 1 text tokens,
    all of them scored. With a stride, windows overlap, every token is scored once, and the rest is scored too.
    """
    prefix = () if bos is None else (bos,)
    size = window - len(prefix)
    if stride is None or stride >= size:
        starts = range(0, len(tokens) - size + 1, size)
        return [Window(prefix + tuple(tokens[start : start + size]), window - 1) for start in starts]
    windows, scored_to = [], 1 - len(prefix)
    for start in range(0, len(tokens), stride):
        end = min(start + size, len(tokens))
        if end > scored_to:
            windows.append(
                Window(prefix + tuple(tokens[start:end]), end - max(scored_to, start if prefix else start + 1))
            )
        scored_to = end
        if end == len(tokens):
            break
    return windows


def rolling_windows(tokens: Sequence[int], window: int, start_token: int) -> list[Window]:
    """A document in disjoint pieces that score every token once, as lm-evaluation-harness's rolling scores do.

    The first piece is conditioned on `start_token`; later ones on the one token before them, and the last one is filled
    up on the left with as much context as fits. `window` counts the tokens that the model reads, one less than a piece.
    """
    if not tokens:
        return []
    first = tuple(tokens[:window])
    windows = [Window((start_token, *first), len(first))]
    done = len(first)
    while done < len(tokens):
        end = min(done + window, len(tokens))
        windows.append(Window(tuple(tokens[max(0, end - window - 1) : end]), end - done))
        done = end
    return windows


def wikitext_perplexity(
    model: LanguageModel,
    rows: Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    protocol: str = "raw",
    limit: int | None = None,
    seed: int = 0,
) -> Scored:
    """Score WikiText-2 under a stated protocol.

    Args:
        limit: score this many windows (of `documents`: pages) only, drawn with `seed`.

    Returns:
        One row per window (page): `nats`, `tokens`, `bytes`, `words`; a window's `cluster`, the article that its middle
        lies in, or a block of neighbouring windows in a text that has no two articles.

    Raises:
        UserError: no text, a text shorter than one window, a window beyond the model's context, NaN logits.
    """
    if protocol == "documents":
        return _score_pages(model, rows, window_for(model, window or model.context_length), limit, seed)
    size = window_for(model, window)
    text = join_rows(rows, protocol)
    tokens = _bodies(model, [text])[0]
    windows = windows_of(tokens, size, stride, model.bos)
    if not windows:
        raise UserError(
            f"the perplexity text has {len(tokens):,} tokens, fewer than one window of {size:,}; "
            f"give more text or a smaller window"
        )
    chosen = draw(len(windows), limit, seed)
    read = size - (model.bos is not None)
    step = min(stride or read, read)
    clusters = _articles(model, text, [index * step + read - step / 2 for index in range(len(windows))])
    scores = model.losses([windows[index] for index in chosen])
    nats = dict(progress(scores, len(chosen), "perplexity"))
    return Scored(
        [
            _window_row(model, index, windows[index], nats[at]) | {"cluster": clusters[index]}
            for at, index in enumerate(chosen)
        ],
        size,
    )


def _articles(model: LanguageModel, text: str, middles: Sequence[float]) -> list[str]:
    """Of windows, by the token in the middle of what each scores, the article that this lies in; neighbours share a
    block where no two articles are told.

    Articles are encoded one by one, so that one ends within a few tokens of where it ends in the whole text.
    """
    from edgequant.evaluation.statistics.batch_means import block_of

    pages = wikitext_pages(text)
    if len(pages) < 2:
        return [f"{BLOCK}{block_of(index, len(middles))}" for index in range(len(middles))]
    ends = list(accumulate(map(len, _bodies(model, pages))))
    return [f"article-{min(bisect_right(ends, middle), len(ends) - 1)}" for middle in middles]


def perplexity_metrics(prefix: str, scored: Scored, bootstrap: Bootstrap) -> dict[str, float]:
    """`prefix/perplexity` and `prefix/bits_per_byte` with bounds; word perplexity where words were counted.

    Perplexity is exp(sum of nats / scored tokens); bounds come from articles, documents or blocks.
    """
    import numpy as np

    nats_bytes = scored.columns("nats", "bytes") / np.array([math.log(2), 1])
    metrics = scored.perplexity(f"{prefix}/perplexity", "tokens", bootstrap)
    metrics |= bootstrap.per_token(f"{prefix}/bits_per_byte", nats_bytes, scored.clusters)
    if "words" in scored.rows[0]:
        metrics |= scored.perplexity(f"{prefix}/word_perplexity", "words", bootstrap)
    metrics[f"{prefix}/tokens"] = float(scored.columns("tokens").sum())
    return metrics


def window_for(model: LanguageModel, window: int | None) -> int:
    """The window in tokens: the one asked for, or the default where the model can read so much.

    Raises:
        UserError: it is beyond the model's context.
    """
    if window is None:
        return min(DEFAULT_WINDOW, model.context_length)
    if window > model.context_length:
        raise UserError(f"window must be at most the model's context of {model.context_length} tokens, got {window}")
    return window


def _bodies(model: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without BOS."""
    return [tokens[1:] if model.bos is not None else tokens for tokens in model.encode(texts)]


def _window_row(model: LanguageModel, index: int, window: Window, nats: float) -> dict:
    unscored = window.tokens[: len(window.tokens) - window.scored]
    size = len(model.decode(window.tokens).encode()) - len(model.decode(unscored).encode())
    return {"id": f"window-{index}", "nats": nats, "tokens": window.scored, "bytes": size}


def _score_pages(model: LanguageModel, rows: Sequence[str], size: int, limit: int | None, seed: int) -> Scored:
    pages = wikitext_pages(join_rows(rows, "raw"))
    if not pages:
        raise UserError("the perplexity text is empty")
    documents = [
        {"id": f"page-{index}", "text": detokenize(pages[index]), "words": len(re.split(r"\s+", pages[index]))}
        | {"bytes": len(pages[index].encode())}
        for index in draw(len(pages), limit, seed)
    ]
    return Scored(score_documents(model, documents, size), size)


def score_documents(model: LanguageModel, documents: list[dict], size: int) -> list[dict]:
    """Nats and tokens of each document beside its columns; its `text` becomes its `bytes` where those are absent."""
    windows: list[Window] = []
    owners: list[int] = []
    for owner, tokens in enumerate(_bodies(model, [document["text"] for document in documents])):
        # Every piece is one input token per scored token; the start token takes the place of a missing context.
        pieces = rolling_windows(tokens, size, model.start_token)
        windows += pieces
        owners += [owner] * len(pieces)
    nats, counts = [0.0] * len(documents), [0] * len(documents)
    for index, value in sorted(progress(model.losses(windows), len(windows), "document perplexity")):
        nats[owners[index]] += value
        counts[owners[index]] += windows[index].scored
    named = [
        {"id": f"document-{at}", "bytes": len(document["text"].encode())} | document
        for at, document in enumerate(documents)
    ]
    return [
        {key: value for key, value in row.items() if key != "text"} | {"nats": nats[at], "tokens": counts[at]}
        for at, row in enumerate(named)
    ]


def drawn_windows(limit: int | None) -> int | None:
    """How many windows, pages or documents stand for `limit` questions: a twentieth, at least one; None for all."""
    return None if limit is None else max(1, limit // 20)


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    from edgequant.evaluation.statistics.intervals import Bootstrap

    protocol = settings.wikitext_protocol
    scored = wikitext_perplexity(
        model, data["wikitext2"], window=settings.window, stride=settings.stride, protocol=protocol,
        limit=drawn_windows(settings.limit), seed=settings.seed,
    )  # fmt: skip
    metrics = perplexity_metrics("wikitext2", scored, Bootstrap.of(settings))
    metrics |= {"wikitext2/windows": float(len(scored.rows))}
    if not str(scored.clusters[0]).startswith(BLOCK):
        metrics["wikitext2/clusters"] = float(len(set(scored.clusters)))
    note = f"wikitext2: {len(scored.rows)} windows of {scored.window} tokens, protocol {protocol}"
    return Evaluation(metrics, {"wikitext2": scored.rows}, [note])


def _texts(rows: Rows) -> list[str]:
    return ["".join(rows)] if rows else []


_COUNTS = {"wikitext2/windows": "windows", "wikitext2/clusters": "articles"}

PERPLEXITY = Task(
    name="perplexity",
    group="wikitext2",
    score=_score,
    data=(
        DataSet(
            name="wikitext2", report="test", select=("validation", "test"), units=articles, drawn=False, texts=_texts
        ),
    ),
    protocol="WikiText-2 raw test split as one string, tokenised once, cut into non-overlapping windows; "
    "perplexity is exp(summed negative log-likelihood / tokens). Bits per byte compares across tokenizers.",
    display={
        "wikitext2/perplexity": Metric("perplexity (WikiText-2)", "", "lower", digits=4, counts=_COUNTS),
        "wikitext2/bits_per_byte": Metric(
            "bits/byte (WikiText-2)", "", "lower", digits=4, prominence="detail", counts=_COUNTS
        ),
    },
    paired=(Paired(metric="wikitext2/perplexity", table="wikitext2", nouns=("windows", "clusters")),),
)
