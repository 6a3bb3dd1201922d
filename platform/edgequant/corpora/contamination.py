"""The guard between training text and evaluation text.

Overlap is counted in word 13-grams, as in Brown et al. 2020 (GPT-3), appendix C: lower case, punctuation dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from edgequant.errors import UserError

NGRAM = 13
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


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation; Sinhala and Tamil signs stay with their letters."""
    return _WORD.findall(text.lower())


def ngrams(texts: Iterable[str], n: int = NGRAM) -> Iterator[tuple[str, ...]]:
    """The word n-grams of each text; none spans two texts."""
    for text in texts:
        words = words_of(text)
        yield from zip(*(words[start:] for start in range(n)), strict=False)


def measure_overlap(training: Iterable[str], evaluation: Iterable[str], n: int = NGRAM) -> Overlap:
    """Compare distinct word n-grams. Keeps hashes of both sides in memory: about 60 bytes per word."""
    evaluated = {hash(gram): gram for gram in ngrams(evaluation, n)}
    trained = {hash(gram) for gram in ngrams(training, n)}
    shared = trained & evaluated.keys()
    example = " ".join(evaluated[min(shared, key=lambda key: evaluated[key])]) if shared else ""
    return Overlap(len(shared) / max(len(trained), 1), len(shared) / max(len(evaluated), 1), example)


def refuse_overlap(
    training: Iterable[str], evaluation: Mapping[str, Iterable[str]], *, max_share: float = 0.01, n: int = NGRAM
) -> dict[str, Overlap]:
    """Refuse training text that repeats evaluation text.

    Args:
        training: Texts a run trains or calibrates on.
        evaluation: Texts a run is scored on, by data-set name.
        max_share: Largest tolerated share of shared distinct 13-grams, on the side where it is larger.
        n: Words per n-gram.

    Returns:
        The measured overlap by data-set name, to be logged.

    Raises:
        UserError: a share is above `max_share`.
    """
    training = list(training)
    overlaps = {name: measure_overlap(training, texts, n) for name, texts in evaluation.items()}
    for name, overlap in overlaps.items():
        if overlap.share > max_share:
            raise UserError(
                f"training text overlaps {name}: {overlap.of_training:.1%} of its {n}-grams are in {name} and "
                f"{overlap.of_evaluation:.1%} of {name} is in it, more than the tolerated {max_share:.1%} "
                f"(for example: {overlap.example!r}); train on another split or remove the shared text"
            )
    return overlaps
