"""`Scheme`: what is quantised and how. Parsed once from a name such as `w4a8-g32+emb4`; no torch in here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, Literal

from edgequant.errors import UserError

Granularity = Literal["tensor", "channel", "group"]
ZeroPoint = Literal["none", "integer", "real"]

# The names of the house; any other combination that the grammar below admits works as well.
SCHEMES = (
    *("w8a8-static", "w8a8", "w8", "w4-g32", "w4-g64", "w4-g128", "w3-g64", "w4a8-g32"),
    *("q8_0", "q4_0", "q4_1", "bnb-int8", "bnb-nf4", "bnb-fp4"),
)
GRAMMAR = re.compile(r"w(?P<bits>[2-8])(?P<a8>a8(?P<static>-static)?)?(-g(?P<group>\d+))?(\+emb(?P<emb>[2-8]))?")
GGML = re.compile(r"(?P<ggml>q8_0|q4_0|q4_1)(\+emb(?P<emb>[2-8]))?")
DEFAULT_EMBEDDING_GROUP = 32


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """How one weight matrix [out, in] becomes integers.

    Attributes:
        bits: width of an integer, 2 to 8.
        zero_point: `none` (symmetric, real 0 is integer 0), `integer` (affine with an integer zero point, Jacob et al.
            2017, equation 1) or `real` (affine with a real minimum, as llama.cpp's q4_1).
        granularity: one scale for the tensor, for an output channel, or for `group_size` inputs of an output channel.
        group_size: inputs that share a scale; with granularity `group` only.
        scale_dtype: how a scale is stored; its size counts.
        layout: `affine`, or the llama.cpp format whose rounding is followed bit for bit.
    """

    bits: int
    zero_point: ZeroPoint = "integer"
    granularity: Granularity = "channel"
    group_size: int | None = None
    scale_dtype: Literal["float32", "float16"] = "float32"
    layout: Literal["affine", "q8_0", "q4_0", "q4_1"] = "affine"

    @property
    def integer_range(self) -> tuple[int, int]:
        """Lowest and highest integer, e.g. (-8, 7); symmetric specs leave the lowest unused (but q4_0)."""
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return (low + 1, high) if self.zero_point == "none" and self.layout != "q4_0" else (low, high)

    def bits_per_weight(self, in_features: int) -> float:
        """Stored bits per weight for rows of `in_features`, scales and zero points included."""
        per_scale = {"group": self.group_size or in_features, "channel": in_features}.get(self.granularity, 1 << 30)
        scale = 16 if self.scale_dtype == "float16" else 32
        offset = {"none": 0, "integer": self.bits, "real": scale}[self.zero_point]
        return self.bits + (scale + offset) / per_scale


@dataclass(frozen=True, kw_only=True)
class ActivationSpec:
    """How the input of a quantised linear becomes 8-bit integers: fixed ranges, or each token's own."""

    mode: Literal["static", "dynamic"]
    bits: int = 8


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What is quantised and how: linears' weights, their inputs, the embedding together with the output head."""

    name: str
    weight: WeightSpec | None = None
    activation: ActivationSpec | None = None
    embedding: WeightSpec | None = None
    backend: Literal["edgequant", "bitsandbytes"] = "edgequant"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for YAML and JSON; `Scheme.from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Scheme:
        """The inverse of `to_dict`."""
        given = dict(values)
        for key, kind in (("weight", WeightSpec), ("activation", ActivationSpec), ("embedding", WeightSpec)):
            if given.get(key) is not None:
                given[key] = kind(**given[key])
        return Scheme(**given)

    @property
    def group_sizes(self) -> set[int]:
        """Every group size that has to divide the input features."""
        specs = [spec for spec in (self.weight, self.embedding) if spec is not None]
        return {spec.group_size for spec in specs if spec.group_size is not None}


def parse_scheme(name: str) -> Scheme:
    """Read a scheme's name.

    `w<bits>` weights, `a8` 8-bit inputs per token (`a8-static`: with fixed ranges), `-g<N>` groups of N inputs
    (without: one scale per output channel), `+emb<bits>` embedding and output head too. `q8_0`, `q4_0`, `q4_1` are
    llama.cpp's formats; `bnb-int8`, `bnb-nf4`, `bnb-fp4` belong to bitsandbytes.

    Raises:
        UserError: the name does not follow the grammar; names the nearest known scheme.
    """
    if name in ("bnb-int8", "bnb-nf4", "bnb-fp4"):
        return Scheme(name=name, backend="bitsandbytes")
    if match := GGML.fullmatch(name):
        return Scheme(name=name, weight=_ggml_spec(match["ggml"]), embedding=_embedding_spec(match["emb"], 32))
    if (match := GRAMMAR.fullmatch(name)) and match["group"] != "0":
        group = int(match["group"]) if match["group"] else None
        activation = ActivationSpec(mode="static" if match["static"] else "dynamic") if match["a8"] else None
        weight = _weight_spec(int(match["bits"]), group)
        return Scheme(name=name, weight=weight, activation=activation, embedding=_embedding_spec(match["emb"], group))
    near = get_close_matches(name, SCHEMES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"scheme {name!r} is unknown.{hint} Known: {', '.join(SCHEMES)}; in general "
        "w<2-8>[a8[-static]][-g<group size>][+emb<2-8>], and +emb4 or +emb8 behind q8_0, q4_0, q4_1"
    )


def _weight_spec(bits: int, group: int | None) -> WeightSpec:
    if group is None:
        return WeightSpec(bits=bits)
    return WeightSpec(bits=bits, granularity="group", group_size=group, scale_dtype="float16")


def _embedding_spec(bits: str | None, group: int | None) -> WeightSpec | None:
    """8-bit rows need one scale each; fewer bits need groups to keep the quality."""
    if bits is None:
        return None
    return _weight_spec(int(bits), None if int(bits) == 8 else group or DEFAULT_EMBEDDING_GROUP)


def _ggml_spec(layout: Any) -> WeightSpec:
    zero_point: ZeroPoint = "real" if layout == "q4_1" else "none"
    bits = 8 if layout == "q8_0" else 4
    return WeightSpec(
        bits=bits, zero_point=zero_point, granularity="group", group_size=32, scale_dtype="float16", layout=layout
    )


def check_group_sizes(scheme: Scheme, input_features: Mapping[str, int]) -> None:
    """Check that every group size divides every layer's inputs.

    Args:
        input_features: layer name to number of input features.

    Raises:
        UserError: names the layer, its features and group sizes that would work.
    """
    for group in sorted(scheme.group_sizes):
        for layer, features in input_features.items():
            if features % group:
                fits = ", ".join(str(size) for size in _common_divisors(input_features.values()))
                raise UserError(
                    f"group_size {group} of scheme {scheme.name} does not divide the {features} input features of "
                    f"{layer}; use one of {fits}"
                )


def _common_divisors(features: Iterable[int]) -> list[int]:
    sizes = list(features)
    return [size for size in (16, 32, 48, 64, 96, 128, 256) if all(feature % size == 0 for feature in sizes)] or [1]
