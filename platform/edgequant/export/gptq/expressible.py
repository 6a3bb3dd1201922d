"""What GPTQ's layout holds of a checkpoint: refused by name before any work. Light."""

from __future__ import annotations

from collections.abc import Iterable

from edgequant.errors import UserError
from edgequant.export.formats import GPTQ
from edgequant.quantization.scheme import Scheme

WIDTHS = (2, 4, 8)  # bits that fill 32-bit words


def check_scheme(scheme: Scheme) -> None:
    """Refuse a scheme whose numbers GPTQ's layout cannot hold as they are.

    Raises:
        UserError: names what it lacks and the schemes that it holds.
    """
    if (lacking := _lacking(scheme)) is not None:
        raise UserError(
            f"scheme {scheme.name} cannot be written as {GPTQ}, whose layout has no place for {lacking}; use w4-g32, "
            "w4-g64, w4-g128, w8-g128, w4-g128-sym, q4_0 or q8_0, or --format onnx or compressed-tensors"
        )


def _lacking(scheme: Scheme) -> str | None:
    spec = scheme.weight
    if spec is None:
        return "bitsandbytes' data types"
    if scheme.embedding is not None:
        return "an embedding in integers"
    if scheme.layer_bits or scheme.budget is not None:
        return "layers of several widths"
    if spec.layout.endswith("_k") or spec.zero_point == "real":
        return "llama.cpp's minima, only integer zero points"
    if spec.granularity != "group" or spec.scale_dtype != "float16":
        return "scales in float32, which rows with one scale have"
    if spec.has_half_levels:
        return "levels at halves"
    return None if spec.bits in WIDTHS else f"integers of {spec.bits} bits, only of 2, 4 or 8"


def check_widths(bits: int, shapes: Iterable[tuple[str, int, int]]) -> None:
    """Refuse matrices whose integers do not fill 32-bit words.

    Args:
        shapes: name, rows and features of each.

    Raises:
        UserError: names the first.
    """
    per_word = 32 // bits
    for name, rows, features in shapes:
        if rows % per_word or features % per_word:
            raise UserError(
                f"matrices for {GPTQ} must have multiples of {per_word} rows and features at {bits} bits, got {rows} x "
                f"{features} in {name}; use --format onnx or compressed-tensors"
            )
