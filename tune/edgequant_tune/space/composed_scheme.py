"""Bits and group sizes as numbers of their own: the parts that a trial's scheme is composed of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from edgequant.errors import UserError
from edgequant.quantization.scheme import GRAMMAR, parse_scheme
from edgequant.quantization.size_budget import parse_size_budget

UNQUANTIZED = 16  # bits of activations or of the embedding that the scheme leaves as they are
SIZE_BUDGET = "size_budget"
PARTS: Mapping[str, Any] = {
    "weight_bits": int,
    "group_size": int,  # inputs that share a scale; 0: one scale for each output channel
    "activation_bits": Literal[8, 16],
    "embedding_bits": int,
    "symmetric": bool,
    SIZE_BUDGET: str | None,
}


def check_parts(names: Collection[str]) -> None:
    """Refuse a space that searches whole schemes and parts of them; a size budget goes with both.

    Raises:
        UserError: names both.
    """
    if "scheme" in names and (parts := [name for name in PARTS if name in names and name != SIZE_BUDGET]):
        raise UserError(
            f"the search space must hold scheme or parts of one, got scheme and {', '.join(parts)}; leave one out"
        )


def composed(scheme: str, values: Mapping[str, Any]) -> dict[str, str]:
    """The scheme with the parts that are searched, as the hyperparameter `scheme`; nothing where none is.

    Args:
        scheme: what has all other parts, such as w4a8-g32+emb4.
        values: a trial's hyperparameters.

    Raises:
        UserError: the scheme is one of fixed parts, such as q4_0, or the parts make none.
    """
    given = {name: values[name] for name in PARTS if name in values}
    if not given:
        return {}
    base, _, budget = str(values.get("scheme", scheme)).partition("@")
    if [name for name in given if name != SIZE_BUDGET]:
        base = _with_parts(base, given)
    if given.get(SIZE_BUDGET):
        budget = parse_size_budget(given[SIZE_BUDGET]).suffix
    name = f"{base}@{budget}" if budget else base
    return {"scheme": parse_scheme(name).name}


def _with_parts(base: str, given: Mapping[str, Any]) -> str:
    match = GRAMMAR.fullmatch(base)
    if match is None:
        raise UserError(
            f"scheme {base!r} has no parts that could be searched, as {next(iter(given))} is; use one such as "
            "w4a8-g32+emb4"
        )
    _check_bits("weight_bits", bits := int(given.get("weight_bits", match["bits"])))
    inputs = ("a8" + (match["static"] or "")) if match["a8"] else ""
    if "activation_bits" in given:
        inputs = "" if given["activation_bits"] == UNQUANTIZED else inputs or "a8"
    group = int(given.get("group_size", match["group"] or 0))
    symmetric = given.get("symmetric", bool(match["sym"]))
    embedding = int(given.get("embedding_bits", match["emb"] or UNQUANTIZED))
    _check_bits("embedding_bits", embedding, UNQUANTIZED)
    tail = "" if embedding == UNQUANTIZED else f"+emb{embedding}"
    return f"w{bits}{inputs}{f'-g{group}' if group else ''}{'-sym' if symmetric else ''}{tail}"


def _check_bits(name: str, bits: int, *others: int) -> None:
    if bits not in (*range(2, 9), *others):
        also = "".join(f", or {other}" for other in others)
        raise UserError(f"hyperparameter {name} must be from 2 to 8{also}, got {bits}")
