"""Training text as a mix of several, with the share of each: `disaster,wikitext-2:0.3`. Light: no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgequant.errors import UserError


class Part(NamedTuple):
    """One text of a mix: its name or path, and its share of the tokens, above 0 to 1."""

    name: str
    share: float


def parse_mix(dataset: str) -> list[Part]:
    """Read a training text: one name or path, or several with commas, each with its share behind a colon.

    Parts without a share divide what the others leave equally. A path that exists is one text whatever it contains.

    Raises:
        UserError: a share that is none, shares that do not make up the whole, or a part given twice.
    """
    if "," not in dataset or Path(dataset).expanduser().exists():
        return [Part(dataset, 1.0)]
    pieces = [piece.strip().rpartition(":") for piece in dataset.split(",")]
    names = [name if colon else last for name, colon, last in pieces]
    given = [_share(dataset, last) if colon else None for _, colon, last in pieces]
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"dataset must be a mix of different texts such as disaster,wikitext-2:0.3, got {dataset!r}")
    given_sum, open_parts = sum(share for share in given if share is not None), given.count(None)
    rest = 1.0 - given_sum
    if (rest <= 1e-9) if open_parts else not math.isclose(given_sum, 1.0, abs_tol=1e-6):
        raise UserError(
            f"dataset {dataset!r}: the given shares must make "
            + ("less than 1, since other parts take the rest" if open_parts else "1, or leave a part without a share")
            + f", got {given_sum:g}"
        )
    return [Part(name, rest / open_parts if share is None else share) for name, share in zip(names, given, strict=True)]


def _share(dataset: str, given: str) -> float:
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(
            f"dataset {dataset!r}: a share must be a number between 0 and 1 behind the colon, got {given!r}"
        )
    return share


def with_parts(dataset: str, change: Callable[[str], str]) -> str:
    """The same mix with each part's name or path changed."""
    parts = parse_mix(dataset)
    if len(parts) == 1:
        return change(dataset)
    return ",".join(f"{change(part.name)}:{part.share!r}" for part in parts)


def rows_of_each(parts: Sequence[Part], available: Sequence[int]) -> list[int]:
    """How many rows of equal length each part gives: the shares hold, and the scarcest part is used up."""
    whole = min(rows / part.share for part, rows in zip(parts, available, strict=True))
    return [min(rows, max(1, round(part.share * whole))) for part, rows in zip(parts, available, strict=True)]
