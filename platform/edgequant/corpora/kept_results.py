"""Results of functions that depend on their arguments alone, kept for the next phase of the same process. Light.

A pipeline's phases read the same training text one after the other, and each packs it and compares it with what is
evaluated on.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class KeptResults(Generic[Result]):
    """The results of the last few calls of one function, by a digest of all that it was given.

    What was given is read whole, which is fast beside whatever goes through it word by word. An error is not kept.

    Args:
        most: results at a time; the one that was asked for longest ago goes first.

    Example:
        kept = KeptResults[int](most=8)
        kept.of(["text", "another"], lambda: slow_function(["text", "another"]))
    """

    def __init__(self, most: int) -> None:
        self._most, self._found = most, OrderedDict[bytes, Result]()

    def of(self, given: Iterable[str], make: Callable[[], Result], *, keep: bool = True) -> Result:
        """What `make` gave when the same texts in the same order were given last, else what it gives now.

        Args:
            keep: whether to keep what it gives now; False for what would take too much memory.
        """
        key = _digest(given)
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key]
        result = make()
        if keep:
            self._found[key] = result
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return result


def _digest(texts: Iterable[str]) -> bytes:
    """SHA-256 of texts and of where each ends."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(encoded))
        digest.update(encoded)
    return digest.digest()
