"""Rotary position embeddings: from the fields and tensors of a GGUF file to transformers' parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgequant.models.gguf.contents import Contents

FACTORS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
Numbers = np.ndarray[Any, np.dtype[np.float64]]


def read_rope(contents: Contents, rotated: int, context: int) -> dict[str, Any]:
    """The `rope_parameters` of the layers with full attention.

    Args:
        rotated: features of a head that are rotated.
        context: longest text, in tokens.

    Raises:
        UserError: a way of scaling that transformers does not have.
    """
    theta = float(contents.take("rope.freq_base", 10_000.0))
    kind, factor = _kind_and_factor(contents)
    stretch = float(contents.take("rope.scaling.attn_factor", 1.0))
    original = int(contents.take("rope.scaling.original_context_length", context))
    betas = {name: contents.take(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    if FACTORS in contents.tensors:
        return _from_factors(contents, theta, rotated, context, kind, factor, stretch)
    if kind == "longrope":
        return _longrope(contents, theta, factor, stretch, original)
    if kind == "yarn":
        return _yarn(theta, factor, stretch, original, betas)
    if stretch != 1.0:
        raise contents.refused(f"rope.scaling.attn_factor {stretch:g} goes with yarn or longrope, got {kind}")
    scaling = {"rope_type": "linear", "factor": factor} if factor != 1.0 else {"rope_type": "default"}
    return {**scaling, "rope_theta": theta}


def _kind_and_factor(contents: Contents) -> tuple[str, float]:
    """llama.cpp takes a factor without a type for linear, and 0 for 1."""
    oldest = contents.take("rope.scale_linear", 1.0)
    factor = float(contents.take("rope.scaling.factor", oldest)) or 1.0
    kind = str(contents.take("rope.scaling.type", "linear"))
    contents.take("rope.scaling.finetuned")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise contents.refused(f"rope.scaling.type must be none, linear, yarn or longrope, got {kind!r}")
    return kind, 1.0 if kind == "none" else factor


def _yarn(theta: float, factor: float, stretch: float, original: int, betas: dict[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, "rope_theta": theta}
    if stretch != 1.0:
        rope["attention_factor"] = stretch * (0.1 * math.log(factor) + 1.0)
    return rope | {name: float(beta) for name, beta in betas.items() if beta is not None}


def _longrope(contents: Contents, theta: float, factor: float, stretch: float, original: int) -> dict[str, Any]:
    lacking = [name for name in (SHORT, LONG) if name not in contents.tensors]
    if lacking or factor != 1.0:
        why = f"without tensor {lacking[0]}" if lacking else f"with rope.scaling.factor {factor:g}"
        raise contents.refused(f"rope.scaling.type 'longrope' {why} has no counterpart in transformers")
    short, long = (_values(contents, name).tolist() for name in (SHORT, LONG))
    return _as_longrope(theta, short, long, stretch, original)


def _as_longrope(theta: float, short: list[float], long: list[float], stretch: float, original: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope", "short_factor": short, "long_factor": long, "factor": 1.0,
        "attention_factor": stretch, "original_max_position_embeddings": original, "rope_theta": theta,
    }  # fmt: skip


def _from_factors(
    contents: Contents, theta: float, rotated: int, context: int, kind: str, factor: float, stretch: float
) -> dict[str, Any]:
    """Llama 3's parameters where the divisors are Llama 3's; others as a longrope that is the same at all lengths."""
    if kind in ("yarn", "longrope") or factor != 1.0 or stretch != 1.0:
        raise contents.refused(
            f"tensor {FACTORS} beside scaling {kind} by {factor:g} has no counterpart in transformers"
        )
    divisors = _values(contents, FACTORS)
    if len(divisors) != rotated // 2 or not (np.isfinite(divisors) & (divisors > 0)).all():
        raise contents.refused(f"tensor {FACTORS} must hold {rotated // 2} positive numbers")
    frequencies = theta ** (-np.arange(0, rotated, 2) / rotated)
    llama3 = llama3_parameters(divisors, frequencies)
    if llama3 is not None:
        return {"rope_type": "llama3", **llama3, "rope_theta": theta}
    return _as_longrope(theta, divisors.tolist(), divisors.tolist(), 1.0, context)


def llama3_parameters(divisors: Numbers, frequencies: Numbers) -> dict[str, float] | None:
    """The parameters of Llama 3's scaling that give these divisors, or None.

    Between the two wavelengths 1/divisor = (1 - s) / factor + s, where s = (original * frequency / 2 pi - low) /
    (high - low) is a straight line over the frequencies: two points give it. `low` is free, and 1 in every model known.

    Args:
        divisors: of each frequency, [rotated / 2].
        frequencies: unscaled, in radians per token, [rotated / 2].
    """
    factor = float(divisors.max())
    between = (divisors > 1.0 + 1e-6) & (divisors < factor * (1.0 - 1e-6))
    if factor <= 1.0 or between.sum() < 2:
        return None
    smooth = (1.0 / divisors[between] - 1.0 / factor) / (1.0 - 1.0 / factor)
    slope, offset = np.polyfit(frequencies[between] / (2 * math.pi), smooth, 1)
    if slope <= 0 or offset >= 0:
        return None
    found = {
        "factor": _rounded(factor), "low_freq_factor": 1.0, "high_freq_factor": _rounded(1.0 - 1.0 / offset),
        "original_max_position_embeddings": round(-slope / offset),
    }  # fmt: skip
    return found if np.allclose(llama3_divisors(found, frequencies), divisors, rtol=1e-5, atol=0) else None


def llama3_divisors(rope: dict[str, Any], frequencies: Numbers) -> Numbers:
    """What Llama 3's scaling divides each frequency by."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    divisors: Numbers = 1.0 / ((1.0 - smooth) / rope["factor"] + smooth)
    return divisors


def _rounded(value: float) -> float:
    """The tensor is float32: 8.000001 was 8."""
    return float(round(value, 3))


def _values(contents: Contents, name: str) -> Numbers:
    from gguf.quants import dequantize

    tensor = contents.tensors[name]
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float64).reshape(-1)
