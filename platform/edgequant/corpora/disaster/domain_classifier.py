"""Which functional domain a chunk belongs to: a linear model fitted on the bundled train documents.

Features: TF-IDF of words and of parts of words, and counts of terms of the field (disaster/domain_terms.yaml). Small
and offline: fitted in seconds on first use in a process, so no pickle is shipped or trusted. A seventh class of
background text (command, finance, training, general prose) and a floor on the density of terms take what belongs to
no domain.

A chunk is judged together with its neighbours in the document: a paragraph on who carries the sacks says little alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from edgequant.corpora.contamination import words_of
from edgequant.corpora.disaster.corpus import BACKGROUND, DOMAIN_TERMS, bundled_documents
from edgequant.corpora.documents import DOMAINS, NO_DOMAIN
from edgequant.corpora.text.sentences import split_sentences

# Chosen on the validation documents.
_NEIGHBORS = 6  # chunks on either side, together about the length of a field document
_NEIGHBOR_WEIGHT = 4.0  # of the neighbourhood's mean log-probability against the chunk's own
_MIN_CONFIDENCE = 0.35
_MIN_TERMS = 1.5  # distinct terms of one domain per 100 words, chunk and neighbourhood weighted as above
_TERM_SCALE = 2.0
_PASSAGE_WORDS = 85  # about a chunk


class Domain(NamedTuple):
    """A domain or `none`, and the model's probability for it (for `none`: that no domain fits)."""

    name: str
    confidence: float


class Report(NamedTuple):
    """Held-out quality. `confusion[true][predicted]` counts passages; F1 by domain; accuracy over the six domains."""

    accuracy: float
    f1: dict[str, float]
    confusion: dict[str, dict[str, int]]
    errors: list[dict[str, Any]]

    @property
    def passages(self) -> int:
        return sum(sum(row.values()) for row in self.confusion.values())


def classify(documents: Sequence[Sequence[str]]) -> list[list[Domain]]:
    """The domain of every chunk of every document.

    Args:
        documents: Per document its chunks in reading order; a text that stands alone is a document of one chunk.
    """
    texts = [text for chunks in documents for text in chunks]
    if not texts:
        return [[] for _ in documents]
    import numpy as np

    model = _fitted()
    scores, terms = model.predict_log_proba(texts), _term_density(texts)
    decided, start = [], 0
    for chunks in documents:
        own = slice(start, start + len(chunks))
        start += len(chunks)
        probabilities = np.exp(_with_neighbors(scores[own])) if chunks else scores[own]
        density = _with_neighbors(terms[own, None]) if chunks else terms[own, None]
        decided.append(
            [_decide(model.classes_, row, float(seen[0])) for row, seen in zip(probabilities, density, strict=True)]
        )
    return decided


def held_out_report(split: str, language: str | None = None, *, alone: bool = False) -> Report:
    """Classify the bundled documents of a split that was not trained on (validation or test).

    Args:
        split: validation or test.
        language: Only documents in this language.
        alone: Judge every passage without its neighbours.
    """
    documents = [document for document in bundled_documents(split) if language in (None, document.language)]
    cut = [(document, passages(document.text)) for document in documents]
    if alone:
        cut = [(document, [text]) for document, texts in cut for text in texts]
    confusion = {true: dict.fromkeys((*DOMAINS, NO_DOMAIN), 0) for true in DOMAINS}
    errors = []
    for (document, texts), decided in zip(cut, classify([texts for _, texts in cut]), strict=True):
        for text, found in zip(texts, decided, strict=True):
            confusion[document.domain][found.name] += 1
            if found.name != document.domain:
                errors.append({"source": document.source, "domain": document.domain, **found._asdict(), "text": text})
    total = sum(sum(row.values()) for row in confusion.values())
    correct = sum(confusion[name][name] for name in DOMAINS)
    return Report(correct / max(total, 1), {name: _f1(confusion, name) for name in DOMAINS}, confusion, errors)


def passages(text: str) -> list[str]:
    """A Markdown document in passages of whole sentences, about a chunk long, headings included."""
    found: list[str] = []
    held: list[str] = []
    for line in (line.lstrip("-*# ").strip() for line in text.split("\n") if line.strip()):
        for sentence in split_sentences(line):
            held.append(sentence)
            if sum(len(part.split()) for part in held) >= _PASSAGE_WORDS:
                found.append(" ".join(held))
                held = []
    return [*found, " ".join(held)] if held else found


def _f1(confusion: dict[str, dict[str, int]], name: str) -> float:
    hits = confusion[name][name]
    predicted = sum(row[name] for row in confusion.values())
    return 2 * hits / max(predicted + sum(confusion[name].values()), 1)


def _with_neighbors(scores: Any) -> Any:
    """Weighted mean of each row and the mean over its neighbourhood. scores: [chunks, any] -> the same shape."""
    import numpy as np

    sums = np.vstack([np.zeros((1, scores.shape[1])), np.cumsum(scores, axis=0)])
    low = np.maximum(np.arange(len(scores)) - _NEIGHBORS, 0)
    high = np.minimum(np.arange(len(scores)) + _NEIGHBORS + 1, len(scores))
    around = (sums[high] - sums[low]) / (high - low)[:, None]
    return (scores + _NEIGHBOR_WEIGHT * around) / (1 + _NEIGHBOR_WEIGHT)


def _decide(classes: Sequence[str], row: Any, terms_per_100_words: float) -> Domain:
    row = row / row.sum()
    best = int(row.argmax())
    name, confidence = str(classes[best]), float(row[best])
    if name == NO_DOMAIN or (confidence >= _MIN_CONFIDENCE and terms_per_100_words >= _MIN_TERMS):
        return Domain(name, round(confidence, 4))
    # Too few terms of the field, or no class in front: the less either is met, the surer that none fits.
    doubt = 1 - min(confidence, terms_per_100_words / (2 * _MIN_TERMS))
    return Domain(NO_DOMAIN, round(doubt, 4))


@cache
def _term_patterns() -> dict[str, re.Pattern[str]]:
    import yaml

    listed = yaml.safe_load(DOMAIN_TERMS.read_text(encoding="utf-8"))
    alternatives = {
        name: sorted({term.strip() for term in terms.split(",")}, key=lambda term: (-len(term), term))
        for name, terms in listed.items()
    }
    return {
        name: re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, terms)) + ")", re.IGNORECASE)
        for name, terms in alternatives.items()
    }


def _distinct_terms(texts: Sequence[str]) -> tuple[Any, Any]:
    """Numbers of hits and of distinct terms, both [texts, domains]."""
    import numpy as np

    patterns = _term_patterns()
    hits = [[pattern.findall(text.lower()) for name, pattern in patterns.items()] for text in texts]
    counts = np.array([[len(found) for found in row] for row in hits], dtype=float)
    distinct = np.array([[len(set(found)) for found in row] for row in hits], dtype=float)
    return counts, distinct


def _term_density(texts: Sequence[str]) -> Any:
    """Distinct terms per 100 words, of the domain that has most: [texts]."""
    import numpy as np

    words = np.array([max(len(text.split()), 1) for text in texts])
    return 100 * _distinct_terms(texts)[1].max(axis=1) / words


def _term_features(texts: Sequence[str]) -> Any:
    import numpy as np

    counts, distinct = _distinct_terms(texts)
    shares = [part / (part.sum(axis=1, keepdims=True) + 1) for part in (counts, distinct)]
    return _TERM_SCALE * np.hstack([*shares, np.log1p(distinct) / 3])


@cache
def _fitted() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer

    words = TfidfVectorizer(tokenizer=words_of, token_pattern=None, lowercase=False, sublinear_tf=True, min_df=2)
    # Sinhala and Tamil inflect: parts of words carry over from one form to another where whole words do not.
    parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=3, max_features=60_000)
    features = make_union(words, parts, FunctionTransformer(_term_features))
    model = make_pipeline(features, LogisticRegression(C=20.0, class_weight="balanced", max_iter=1000))
    return model.fit(*_training_passages())


def _training_passages() -> tuple[list[str], list[str]]:
    labeled = [(text, document.domain) for document in bundled_documents("train") for text in passages(document.text)]
    labeled += [(text, NO_DOMAIN) for text in BACKGROUND.read_text(encoding="utf-8").strip().split("\n\n")]
    return [text for text, _ in labeled], [label for _, label in labeled]
