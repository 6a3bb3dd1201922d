"""The guard between training text and evaluation text.

Overlap is counted in word 13-grams, as in Brown et al. 2020 (GPT-3), appendix C: lower case, punctuation dropped.
Shorter texts, which have no 13-gram, such as questions, are looked for whole.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from edgequant.corpora.kept_results import KeptResults
from edgequant.errors import UserError

NGRAM = 13
FEWEST = 6  # words of a short text that is looked for
_WORD = re.compile(r"[^\W_]+(?:[\u200c\u200d\u0300-\u036f\u0b80-\u0bff\u0d80-\u0dff]+[^\W_]*)*")


class Overlap(NamedTuple):
    """Shares (0 to 1) of the distinct 13-grams on either side that the other side contains, and one example."""

    of_training: float
    of_evaluation: float
    example: str

    @property
    def share(self) -> float:
        """The larger of the two: little training text may lie wholly in the test set, or hold all of it."""
        return max(self.of_training, self.of_evaluation)


_compared: KeptResults[dict[str, Overlap]] = KeptResults(most=8)


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation; Sinhala and Tamil signs stay with their letters."""
    return _WORD.findall(text.lower())


def ngrams(texts: Iterable[str], n: int = NGRAM) -> Iterator[tuple[str, ...]]:
    """The word n-grams of each text; none spans two texts."""
    for text in texts:
        words = words_of(text)
        yield from zip(*(words[start:] for start in range(n)), strict=False)


def _overlap(trained: set[int], evaluation: Iterable[str], n: int) -> Overlap:
    evaluated = {hash(gram): gram for gram in ngrams(evaluation, n)}
    shared = trained & evaluated.keys()
    example = " ".join(evaluated[min(shared, key=lambda key: evaluated[key])]) if shared else ""
    return Overlap(len(shared) / max(len(trained), 1), len(shared) / max(len(evaluated), 1), example)


def repeated_whole(training: Iterable[str], short: Iterable[str], n: int = NGRAM) -> Overlap:
    """Which of the texts shorter than an n-gram, such as questions, stand in the training text whole.

    As shares of the training text's words and of these texts. Texts of fewer than 6 words are left out: such a
    question may be asked anywhere.
    """
    texts = {words for text in short if FEWEST <= len(words := tuple(words_of(text))) < n}
    beginnings: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for words in texts:
        beginnings.setdefault(words[:FEWEST], []).append(words)
    found, repeated, total = set[tuple[str, ...]](), 0, 0
    for text in training if texts else ():
        words_there = words_of(text)
        total += len(words_there)
        for start, gram in enumerate(zip(*(words_there[at:] for at in range(FEWEST)), strict=False)):
            for words in beginnings.get(gram, ()):
                if tuple(words_there[start : start + len(words)]) == words:
                    found.add(words)
                    repeated += len(words)
    example = " ".join(min(found)) if found else ""
    return Overlap(repeated / max(total, 1), len(found) / max(len(texts), 1), example)


def refuse_overlap(
    training: Iterable[str], evaluation: Mapping[str, Iterable[str]], *, max_share: float = 0.01, n: int = NGRAM
) -> dict[str, Overlap]:
    """Refuse training text that repeats evaluation text. Keeps hashes of both in memory: about 60 bytes per word. The
    same texts again are not compared again.

    Args:
        training: Texts a run trains or calibrates on.
        evaluation: Texts a run is scored on, by data-set name; those shorter than an n-gram are looked for whole.
        max_share: Largest tolerated share of shared distinct 13-grams, on the side where it is larger, and of short
            texts that are repeated.
        n: Words per n-gram.

    Returns:
        The measured overlap by data-set name, to be logged; of short texts where that is the larger.

    Raises:
        UserError: a share is above `max_share`.
    """
    training, evaluated = list(training), {name: list(texts) for name, texts in evaluation.items()}
    told = [repr((max_share, n, len(training), [(name, len(texts)) for name, texts in evaluated.items()]))]
    given = itertools.chain(told, training, *evaluated.values())
    return dict(_compared.of(given, lambda: _refuse_overlap(training, evaluated, max_share, n)))


def _refuse_overlap(
    training: list[str], evaluated: Mapping[str, list[str]], max_share: float, n: int
) -> dict[str, Overlap]:
    trained, overlaps = {hash(gram) for gram in ngrams(training, n)}, dict[str, Overlap]()
    for name, texts in evaluated.items():
        overlap, repeated = _overlap(trained, texts, n), repeated_whole(training, texts, n)
        overlaps[name] = max(overlap, repeated, key=lambda found: found.share)
        if overlap.share > max_share:
            raise UserError(
                f"training text overlaps {name}: {overlap.of_training:.1%} of its {n}-grams are in {name} and "
                f"{overlap.of_evaluation:.1%} of {name} is in it, more than the tolerated {max_share:.1%} "
                f"(for example: {overlap.example!r}); train on another split or remove the shared text"
            )
        if repeated.share > max_share:
            raise UserError(
                f"training text repeats questions of {name}: {repeated.of_evaluation:.1%} of them, which make "
                f"{repeated.of_training:.1%} of it, more than the tolerated {max_share:.1%} (for example: "
                f"{repeated.example!r}); train on another split or remove them"
            )
    return overlaps
