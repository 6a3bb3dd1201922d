"""Names of schemes to use where a group size does not divide a model's widths. Text alone; `scheme` tries them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import gcd

LEAST, MOST = 8, 256  # inputs in a group worth offering: of fewer, scales take as much room as the weights
OFFERED = 3
_NAME = re.compile(
    r"(?P<head>w([2-8]|1\.58)(a8(-static)?)?)(?P<group>-g\d+)?(?P<sym>-sym)?(\+emb(?P<emb>[2-8]))?(?P<budget>@.+)?"
)
_GGML = re.compile(r"q(?P<bits>\d)_[01k](\+emb(q(?P<own>\d)_[01k]|(?P<emb>[2-8])))?(?P<budget>@.+)?")


def near_divisors(widths: Sequence[int], wanted: int) -> list[int]:
    """Group sizes that divide all widths, those nearest to the wanted one, ascending; multiples of 8 where any is."""
    common = gcd(*widths)
    sizes = [size for size in range(LEAST, min(common, MOST) + 1) if common % size == 0]
    sizes = [size for size in sizes if size % 8 == 0] or sizes
    return sorted(sorted(sizes, key=lambda size: max(size / wanted, wanted / size))[:OFFERED])


def names_to_try(name: str, wanted: int, widths: Sequence[int]) -> list[list[str]]:
    """Names close to a scheme's, with groups that fit first, then without groups; of each list the first that fits.

    llama.cpp's layouts have groups of 32 and no others, so that a scheme of as many bits takes their place.

    Args:
        name: of the scheme; one that is none of ours has no names close to it.
        wanted: the group size that does not fit.
        widths: input features of each layer.
    """
    if match := _GGML.fullmatch(name):
        head, symmetric, bits, is_grouped = f"w{match['bits']}", "", match["own"] or match["emb"], True
        whole = "w8"
    elif match := _NAME.fullmatch(name):
        head, symmetric, bits, is_grouped = match["head"], match["sym"] or "", match["emb"], bool(match["group"])
        whole = head
    else:
        return []
    budget = match["budget"] or ""
    embeddings = [""] if bits is None else [f"+emb{bits}", "+emb8"]  # of 8 bits it has no groups
    # Of a scheme whose embedding alone has groups, only the embedding's width may be known.
    sizes = near_divisors(widths, wanted) if is_grouped or len(widths) > 1 else []
    grouped = [[f"{head}-g{size}{symmetric}{embeddings[0]}{budget}"] for size in sizes]
    return [*grouped, [f"{whole}{symmetric}{embedding}{budget}" for embedding in embeddings]]
