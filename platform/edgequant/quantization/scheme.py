"""`Scheme`: what is quantised and how. Parsed once from a name such as `w4a8-g32+emb4`; no torch in here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from edgequant.errors import UserError
from edgequant.quantization.group_sizes import names_to_try
from edgequant.quantization.size_budget import SizeBudget, budget_of_suffix
from edgequant.quantization.weight_spec import K_QUANT_OF_BITS, WeightSpec, ZeroPoint, ggml_spec

# edgequant's named schemes; any other combination that the grammar below admits works as well.
SCHEMES = (
    *("w8a8-static", "w8a8", "w8", "w4-g32", "w4-g64", "w4-g128", "w3-g64", "w2-g64", "w4a8-g32"),
    *("w8a8-sym", "w4-g32-sym", "w4a8-g32-sym", "w2-g64-sym", "w1.58-g64"),
    *("q8_0", "q4_0", "q4_1", "q8_0+embq8_0", "q4_0+embq4_0", "q4_1+embq4_1"),
    *("q4_k", "q6_k", "q4_k+embq4_k", "q4_k+embq6_k", "q6_k+embq6_k", "bnb-int8", "bnb-nf4", "bnb-fp4"),
)
_INPUTS, _GROUP, _EMBEDDING = r"(?P<a8>a8(?P<static>-static)?)?", r"(-g(?P<group>\d+))?", r"(\+emb(?P<emb>[2-8]))?"
GRAMMAR = re.compile(rf"w(?P<bits>[2-8]){_INPUTS}{_GROUP}(?P<sym>-sym)?{_EMBEDDING}")
TERNARY = re.compile(rf"w1\.58{_INPUTS}{_GROUP}{_EMBEDDING}")
_GGML = "q8_0|q4_0|q4_1|q4_k|q6_k"
GGML = re.compile(rf"(?P<ggml>{_GGML})(\+emb((?P<emb>[2-8])|(?P<own>{_GGML})))?")
DEFAULT_EMBEDDING_GROUP = 32


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
                f"scheme {self.name} has fixed bits, so no size budget applies; use one such as w4a8-g32+emb4 or "
                "q4_k+embq6_k"
            )
        object.__setattr__(self, "layer_bits", tuple(sorted(self.layer_bits)))  # one order: YAML keeps none
        for layer, bits in self.layer_bits:
            if bits not in self.possible_bits:
                expected = "from 2 to 8" if len(self.possible_bits) == 7 else f"one of {self.possible_bits}"
                raise UserError(f"scheme {self.name}: bits of {layer} must be {expected}, got {bits}")

    @property
    def can_mix_bits(self) -> bool:
        """Whether layers may have different bits: not in ternary, llama.cpp's older and bitsandbytes' formats."""
        specs = [spec for spec in (self.weight, self.embedding) if spec is not None]
        return bool(specs) and all(spec.can_change_bits for spec in specs)

    @property
    def possible_bits(self) -> tuple[int, ...]:
        """Bits that a layer may have where they are not fixed, ascending."""
        is_k_quant = any(spec is not None and spec.is_k_quant for spec in (self.weight, self.embedding))
        return tuple(K_QUANT_OF_BITS) if is_k_quant else tuple(range(2, 9))

    @property
    def candidate_bits(self) -> tuple[int, ...]:
        """Those that the size budget chooses among."""
        return (
            () if self.budget is None else tuple(bits for bits in self.budget.candidates if bits in self.possible_bits)
        )

    @property
    def awaits_layer_bits(self) -> bool:
        """Whether there is a size budget for which the bits of each layer are still to be chosen."""
        return self.budget is not None and not self.layer_bits

    def spec_of(self, layer: str, in_features: int, *, embedding: bool = False) -> WeightSpec:
        """How the weight of a layer becomes integers.

        Args:
            layer: its name in the model.
            in_features: of its weight, which a K-quant may not fit.
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
        return spec.with_bits(dict(self.layer_bits).get(layer, spec.bits)).fitting(in_features)

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
        return {spec.divisor for spec in specs if spec.divisor is not None}


def parse_scheme(name: str) -> Scheme:
    """Read a scheme's name.

    `w<bits>` weights, `a8` 8-bit inputs per token (`a8-static`: with fixed ranges), `-g<N>` groups of N inputs
    (without: one scale per output channel), `-sym` symmetric weights without zero points, `+emb<bits>` embedding and
    output head too, symmetric where the weights are by `-sym`. `w1.58` are ternary weights, affine in the embedding.
    `q8_0`, `q4_0`, `q4_1` and the K-quants `q4_k`, `q6_k` are llama.cpp's formats, `+embq8_0`, `+embq4_0`... behind one
    of them put embedding and head into one too, e.g. `q4_0+embq4_0`, whose integers a GGUF file holds throughout;
    `bnb-int8`, `bnb-nf4`, `bnb-fp4` belong to bitsandbytes. Behind a name whose bits are not fixed, `@4.5bpp` or
    `@80MB` is a size budget (bits per parameter, megabytes): bits are then chosen layer by layer.

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
        embedding = ggml_spec(match["own"]) if match["own"] else _embedding_spec(match["emb"], 32)
        return Scheme(name=name, weight=ggml_spec(match["ggml"]), embedding=embedding)
    match = GRAMMAR.fullmatch(name) or TERNARY.fullmatch(name)
    if match and match["group"] != "0":
        return _in_general(name, match.groupdict())
    near = get_close_matches(name.lower(), SCHEMES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"scheme {name!r} is unknown.{hint} Known: {', '.join(SCHEMES)}; in general "
        "w<2-8>[a8[-static]][-g<group size>][-sym][+emb<2-8>][@<n>bpp or @<n>MB], ternary "
        "w1.58[a8[-static]][-g<group size>][+emb<2-8>], and +emb4, +emb8, +embq8_0, +embq4_0, +embq4_1, +embq4_k or "
        "+embq6_k behind q8_0, q4_0, q4_1, q4_k, q6_k"
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


def told_replacements(scheme: Scheme, input_features: Mapping[str, int], embeddings: Collection[str]) -> str:
    """Which matrices become something else than the scheme's K-quant, whose width they do not have; "" where none do.

    Args:
        input_features: of each matrix that the scheme quantises, by its layer's name.
        embeddings: the embedding and the output head among them.
    """
    found: Counter[tuple[str, str]] = Counter()
    widths = set()
    for layer, features in input_features.items():
        base, bits = scheme.embedding if layer in embeddings else scheme.weight, dict(scheme.layer_bits).get(layer)
        wanted = None if base is None else base.with_bits(bits or base.bits)
        if wanted is not None and wanted != (taken := wanted.fitting(features)):
            found[wanted.layout, taken.layout] += 1
            widths.add(str(features))
    if not found:
        return ""
    total, rows = len(input_features), ", ".join(sorted(widths, key=int))
    counts = ", ".join(f"{count} of {total} become {taken} for {wanted}" for (wanted, taken), count in found.items())
    return f"K-quants need rows that 256 divides; of matrices with rows of {rows}, {counts}"


def check_group_sizes(scheme: Scheme, input_features: Mapping[str, int]) -> None:
    """Check that every group size divides every layer's inputs.

    Args:
        input_features: layer name to number of input features.

    Raises:
        UserError: names the layer, its features and schemes that would work.
    """
    for group in sorted(scheme.group_sizes):
        for layer, features in input_features.items():
            if features % group:
                raise UserError(
                    f"group_size {group} of scheme {scheme.name} does not divide the {features} input features of "
                    f"{layer}; use {_fitting_names(scheme, group, list(input_features.values()))}"
                )


def nearest_that_fits(scheme: Scheme, input_features: Mapping[str, int]) -> str:
    """The scheme's name, or that of one close to it whose groups divide every layer's inputs.

    Args:
        input_features: layer name to number of input features.
    """
    widths = list(input_features.values())
    found = [_fitting(scheme, group, widths) for group in sorted(scheme.group_sizes) if not _divides(group, widths)]
    return next((names[-2:][0] for names in found if names), "w8") if found else scheme.name  # the largest groups


def _divides(group: int, widths: list[int]) -> bool:
    return not any(width % group for width in widths)


def _fitting(scheme: Scheme, group: int, widths: list[int]) -> list[str]:
    """Schemes close to one whose groups do not fit, each tried on the widths."""

    def fits(name: str) -> bool:
        return all(_divides(size, widths) for size in parse_scheme(name).group_sizes)

    found = [next(filter(fits, names), None) for names in names_to_try(scheme.name, group, widths)]
    return [name for name in found if name is not None]


def _fitting_names(scheme: Scheme, group: int, widths: list[int]) -> str:
    names = _fitting(scheme, group, widths)
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "one without groups, such as w8"
