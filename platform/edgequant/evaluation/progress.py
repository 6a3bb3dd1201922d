"""One bar with a rate while results arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


def progress(results: Iterable[Result], total: int, name: str) -> Iterator[Result]:
    """Pass results on while a bar counts them; silent where nobody watches (output to a file or a pipe)."""
    from tqdm import tqdm

    yield from tqdm(results, total=total, desc=name, unit="item", disable=None, leave=False)
