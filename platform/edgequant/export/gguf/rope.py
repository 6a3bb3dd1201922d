"""Rotary position embeddings as llama.cpp reads them: fields, a tensor of divisors, or a refusal by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor

from edgequant.errors import UserError


def rope_of(config: Any) -> dict[str, Any]:
    """The parameters of the layers with full attention."""
    rope = getattr(config, "rope_parameters", None) or {}
    return dict(rope.get("full_attention", rope))


def theta_of(rope: dict[str, Any]) -> float:
    """The base of the frequencies."""
    return float(rope.get("rope_theta") or 10_000.0)


def kind_of(rope: dict[str, Any]) -> str:
    """The way of scaling: `default` where there is none."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def check_rope(config: Any, *, takes_divisors: bool) -> None:
    """Refuse a way of scaling that llama.cpp would compute otherwise.

    Args:
        takes_divisors: llama.cpp reads a tensor of divisors, one a frequency, in this architecture.

    Raises:
        UserError: names the way and those that can be written.
    """
    rope, name = rope_of(config), config.model_type
    kind = kind_of(rope)
    fits = "default, linear or yarn" + (" or llama3" if takes_divisors else "")
    if kind == "dynamic":
        raise UserError(f"rope_type for GGUF must be {fits}, got 'dynamic', which changes with the length of the text")
    if kind == "longrope" and takes_divisors and not _is_same_at_all_lengths(rope):
        raise UserError(
            f"rope_type for GGUF must be {fits}, got 'longrope', whose factors llama.cpp takes by the size of "
            "its window, not by the length of the text"
        )
    known = {"default", "linear", "yarn"} | ({"llama3", "longrope"} if takes_divisors else set())
    if kind not in known:
        raise UserError(f"rope_type for GGUF must be {fits} in architecture {name}, got {kind!r}")
    if kind == "yarn":
        _check_yarn(rope)


def _check_yarn(rope: dict[str, Any]) -> None:
    """llama.cpp has fields for the betas; its release of October 2026 computes something else of them."""
    for name, usual in (("truncate", True), ("beta_fast", 32), ("beta_slow", 1)):
        if (given := rope.get(name)) is not None and given != usual:
            raise UserError(
                f"rope_parameters.{name} for GGUF must be {usual}, got {given}, which llama.cpp does not compute; keep "
                "the model as a folder"
            )


def _is_same_at_all_lengths(rope: dict[str, Any]) -> bool:
    return rope.get("short_factor") == rope.get("long_factor") and rope.get("attention_factor") == 1.0


def frequency_divisors(config: Any, rotated: int) -> Tensor | None:
    """What llama.cpp divides each frequency by [rotated / 2], float32; None where no tensor is needed."""
    rope = rope_of(config)
    if kind_of(rope) == "longrope":
        return torch.tensor(rope["short_factor"], dtype=torch.float32)
    if kind_of(rope) != "llama3":
        return None
    from edgequant.models.gguf.rope import llama3_divisors

    frequencies = theta_of(rope) ** (-np.arange(0, rotated, 2) / rotated)
    return torch.from_numpy(llama3_divisors(rope, frequencies).astype(np.float32))


def write_rope(writer: GGUFWriter, config: Any) -> None:
    """Write the base and, where there is one, the scaling. See `check_rope`."""
    rope = rope_of(config)
    writer.add_rope_freq_base(theta_of(rope))
    if kind_of(rope) == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind_of(rope) == "yarn":
        _write_yarn(writer, rope, config)


def _write_yarn(writer: GGUFWriter, rope: dict[str, Any], config: Any) -> None:
    original = int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    factor = float(rope.get("factor") or config.max_position_embeddings / original)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(original)
    if (stretch := yarn_stretch(rope, factor)) != 1.0:
        writer.add_rope_scaling_attn_factors(stretch)


def yarn_stretch(rope: dict[str, Any], factor: float) -> float:
    """The factor on cosines and sines beyond yarn's own, 0.1 ln(factor) + 1 (Peng et al. 2023, equation 22)."""

    def own(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"]) / own()
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return own(rope["mscale"]) / own(rope["mscale_all_dim"]) / own()
    return 1.0
