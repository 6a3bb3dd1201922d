"""`Scheme`: what is quantised and how. Parsed once from a name such as `w4a8-g32+emb4`; no torch in here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from edgequant.errors import UserError
from edgequant.quantization.size_budget import SizeBudget, budget_of_suffix

Granularity = Literal["tensor", "channel", "group"]
ZeroPoint = Literal["none", "integer", "real"]

# edgequant's named schemes; any other combination that the grammar below admits works as well.
SCHEMES = (
    *("w8a8-static", "w8a8", "w8", "w4-g32", "w4-g64", "w4-g128", "w3-g64", "w2-g64", "w4a8-g32"),
    *("w8a8-sym", "w4-g32-sym", "w4a8-g32-sym", "w2-g64-sym", "w1.58-g64"),
    *("q8_0", "q4_0", "q4_1", "q8_0+embq8_0", "q4_0+embq4_0", "q4_1+embq4_1", "bnb-int8", "bnb-nf4", "bnb-fp4"),
)
_INPUTS, _GROUP, _EMBEDDING = r"(?P<a8>a8(?P<static>-static)?)?", r"(-g(?P<group>\d+))?", r"(\+emb(?P<emb>[2-8]))?"
GRAMMAR = re.compile(rf"w(?P<bits>[2-8]){_INPUTS}{_GROUP}(?P<sym>-sym)?{_EMBEDDING}")
TERNARY = re.compile(rf"w1\.58{_INPUTS}{_GROUP}{_EMBEDDING}")
GGML = re.compile(r"(?P<ggml>q8_0|q4_0|q4_1)(\+emb((?P<emb>[2-8])|(?P<own>q8_0|q4_0|q4_1)))?")
DEFAULT_EMBEDDING_GROUP = 32


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """How one weight matrix [out, in] becomes integers.

    Attributes:
        bits: width of an integer, 2 to 8.
        zero_point: `none` (symmetric: real 0 is integer 0, but see `has_half_levels`), `integer` (affine with an
            integer zero point, Jacob et al. 2017, equation 1) or `real` (affine with a real minimum, as llama.cpp's
            q4_1).
        granularity: one scale for the tensor, for an output channel, or for `group_size` inputs of an output channel.
        group_size: inputs that share a scale; with granularity `group` only.
        scale_dtype: how a scale is stored; its size counts.
        layout: `affine`, or the llama.cpp format whose rounding is followed bit for bit.
        levels: 3 for ternary weights -S, 0, S, which lie five to a byte; None: all integers of `bits`.
    """

    bits: int
    zero_point: ZeroPoint = "integer"
    granularity: Granularity = "channel"
    group_size: int | None = None
    scale_dtype: Literal["float32", "float16"] = "float32"
    layout: Literal["affine", "q8_0", "q4_0", "q4_1"] = "affine"
    levels: Literal[3] | None = None

    @property
    def integer_range(self) -> tuple[int, int]:
        """Lowest and highest integer, e.g. (-8, 7); symmetric 8-bit and ternary specs leave the lowest unused.

        That is what runtimes hold: -127 to 127 in TensorFlow Lite, XNNPACK and q8_0; -8 to 7 in torchao's and
        ExecuTorch's 8da4w, GPTQ's symmetric files, compressed-tensors and q4_0.
        """
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        narrow = self.zero_point == "none" and (self.bits == 8 or self.levels == 3)
        return (low + 1, high) if narrow else (low, high)

    @property
    def has_half_levels(self) -> bool:
        """Whether integer q stands for S (q + 1/2): symmetric specs of 2 bits, -3/2 S, -1/2 S, 1/2 S, 3/2 S.

        The levels of ParetoQ's stretched elastic quantisation (Liu et al. 2025, arXiv 2502.02631, section 4.2): of
        -2 S, -S, 0, S one would lie far out on one side only.
        """
        return self.zero_point == "none" and self.bits == 2 and self.levels is None

    @property
    def has_few_levels(self) -> bool:
        """Whether three or four symmetric levels stand for a group, too few to reach its extremes."""
        return self.zero_point == "none" and self.bits == 2

    def bits_per_weight(self, in_features: int) -> float:
        """Stored bits per weight for rows of `in_features`, scales and zero points included."""
        per_scale = {"group": self.group_size or in_features, "channel": in_features}.get(self.granularity, 1 << 30)
        scale = 16 if self.scale_dtype == "float16" else 32
        offset = {"none": 0, "integer": self.bits, "real": scale}[self.zero_point]
        return (8 / 5 if self.levels == 3 else self.bits) + (scale + offset) / per_scale


@dataclass(frozen=True, kw_only=True)
class ActivationSpec:
    """How the input of a quantised linear becomes 8-bit integers: fixed ranges, or each token's own."""

    mode: Literal["static", "dynamic"]
    bits: int = 8


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What is quantised and how: linears' weights, their inputs, the embedding together with the output head.

    With a size budget, `layer_bits` says which layer gets how many bits; it is empty until they have been chosen
    (`bit_allocation.choose_layer_bits`). A layer that it does not name has the bits of `weight` or `embedding`, from
    which every layer has everything else.
    """

    name: str
    weight: WeightSpec | None = None
    activation: ActivationSpec | None = None
    embedding: WeightSpec | None = None
    backend: Literal["edgequant", "bitsandbytes"] = "edgequant"
    budget: SizeBudget | None = None
    layer_bits: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if (self.budget or self.layer_bits) and not self.can_mix_bits:
            raise UserError(
                f"scheme {self.name} has fixed bits, so no size budget applies; use one such as w4a8-g32+emb4"
            )
        object.__setattr__(self, "layer_bits", tuple(sorted(self.layer_bits)))  # one order: YAML keeps none
        for layer, bits in self.layer_bits:
            if bits not in range(2, 9):
                raise UserError(f"scheme {self.name}: bits of {layer} must be from 2 to 8, got {bits}")

    @property
    def can_mix_bits(self) -> bool:
        """Whether layers may have different bits: not in ternary, llama.cpp's and bitsandbytes' formats."""
        return self.weight is not None and self.weight.layout == "affine" and self.weight.levels is None

    @property
    def awaits_layer_bits(self) -> bool:
        """Whether there is a size budget for which the bits of each layer are still to be chosen."""
        return self.budget is not None and not self.layer_bits

    def spec_of(self, layer: str, *, embedding: bool = False) -> WeightSpec:
        """How the weight of a layer becomes integers.

        Args:
            layer: its name in the model.
            embedding: it is the embedding or the output head, which `+emb` quantises.

        Raises:
            UserError: the scheme has a size budget, and nobody has chosen the bits yet.
        """
        if self.awaits_layer_bits:
            raise UserError(
                f"scheme {self.name} has a size budget, for which the bits of each layer have to be chosen first: the "
                "workflows ptq and qat do, as does bit_allocation.choose_layer_bits"
            )
        spec = self.embedding if embedding else self.weight
        assert spec is not None
        bits = dict(self.layer_bits).get(layer, spec.bits)
        return spec if bits == spec.bits else replace(spec, bits=bits)

    def with_budget(self, budget: SizeBudget) -> Scheme:
        """The same scheme under a size budget, its name telling it, the bits of its layers yet to be chosen.

        Raises:
            UserError: bits are fixed in this scheme's format.
        """
        name = f"{self.name.partition('@')[0]}@{budget.suffix}"
        return replace(self, name=name, budget=budget, layer_bits=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for YAML and JSON; `Scheme.from_dict` reads it back."""
        values = asdict(self) | {"layer_bits": dict(self.layer_bits)}
        if self.budget is not None:
            values["budget"]["candidates"] = list(self.budget.candidates)
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Scheme:
        """The inverse of `to_dict`."""
        given = dict(values)
        for key, kind in (("weight", WeightSpec), ("activation", ActivationSpec), ("embedding", WeightSpec)):
            if given.get(key) is not None:
                given[key] = kind(**given[key])
        if given.get("budget") is not None:
            candidates = tuple(given["budget"]["candidates"])
            given["budget"] = SizeBudget(**{**given["budget"], "candidates": candidates})
        given["layer_bits"] = tuple((given.get("layer_bits") or {}).items())
        return Scheme(**given)

    @property
    def group_sizes(self) -> set[int]:
        """Every group size that has to divide the input features."""
        specs = [spec for spec in (self.weight, self.embedding) if spec is not None]
        return {spec.group_size for spec in specs if spec.group_size is not None}


def parse_scheme(name: str) -> Scheme:
    """Read a scheme's name.

    `w<bits>` weights, `a8` 8-bit inputs per token (`a8-static`: with fixed ranges), `-g<N>` groups of N inputs
    (without: one scale per output channel), `-sym` symmetric weights without zero points, `+emb<bits>` embedding and
    output head too, symmetric where the weights are by `-sym`. `w1.58` are ternary weights, affine in the embedding.
    `q8_0`, `q4_0`, `q4_1` are llama.cpp's formats, `+embq8_0`, `+embq4_0`, `+embq4_1` behind one of them put embedding
    and head into one too, e.g. `q4_0+embq4_0`, whose integers a GGUF file holds throughout; `bnb-int8`, `bnb-nf4`,
    `bnb-fp4` belong to bitsandbytes. Behind a name whose bits are not fixed, `@4.5bpp` or `@80MB` is a size budget
    (bits per parameter, megabytes): bits are then chosen layer by layer.

    Raises:
        UserError: the name does not follow the grammar (names the nearest known scheme), or the budget cannot be meant.
    """
    if not isinstance(name, str):
        raise UserError(f"scheme must be a name such as w4a8-g32+emb4, got {name!r}")
    base, at, suffix = name.partition("@")
    if at and (budget := budget_of_suffix(suffix)):
        return parse_scheme(base).with_budget(budget)
    if name in ("bnb-int8", "bnb-nf4", "bnb-fp4"):
        return Scheme(name=name, backend="bitsandbytes")
    if match := GGML.fullmatch(name):
        embedding = _ggml_spec(match["own"]) if match["own"] else _embedding_spec(match["emb"], 32)
        return Scheme(name=name, weight=_ggml_spec(match["ggml"]), embedding=embedding)
    match = GRAMMAR.fullmatch(name) or TERNARY.fullmatch(name)
    if match and match["group"] != "0":
        return _in_general(name, match.groupdict())
    near = get_close_matches(name, SCHEMES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"scheme {name!r} is unknown.{hint} Known: {', '.join(SCHEMES)}; in general "
        "w<2-8>[a8[-static]][-g<group size>][-sym][+emb<2-8>][@<n>bpp or @<n>MB], ternary "
        "w1.58[a8[-static]][-g<group size>][+emb<2-8>], and +emb4, +emb8, +embq8_0, +embq4_0 or "
        "+embq4_1 behind q8_0, q4_0, q4_1"
    )


def _in_general(name: str, parts: Mapping[str, str | None]) -> Scheme:
    group = int(parts["group"]) if parts["group"] else None
    activation = ActivationSpec(mode="static" if parts["static"] else "dynamic") if parts["a8"] else None
    zero_point: ZeroPoint = "none" if parts.get("sym") else "integer"
    if "bits" in parts:
        weight = _weight_spec(int(parts["bits"] or 0), group, zero_point)
    else:
        weight = replace(_weight_spec(2, group, "none"), levels=3)
    embedding = _embedding_spec(parts["emb"], group, zero_point)
    return Scheme(name=name, weight=weight, activation=activation, embedding=embedding)


def _weight_spec(bits: int, group: int | None, zero_point: ZeroPoint) -> WeightSpec:
    if group is None:
        return WeightSpec(bits=bits, zero_point=zero_point)
    return WeightSpec(bits=bits, zero_point=zero_point, granularity="group", group_size=group, scale_dtype="float16")


def _embedding_spec(bits: str | None, group: int | None, zero_point: ZeroPoint = "integer") -> WeightSpec | None:
    """8-bit rows need one scale each; fewer bits need groups to keep the quality."""
    if bits is None:
        return None
    return _weight_spec(int(bits), None if int(bits) == 8 else group or DEFAULT_EMBEDDING_GROUP, zero_point)


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
