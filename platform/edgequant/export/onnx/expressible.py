"""What onnxruntime-genai's graphs hold of a checkpoint: refused by name before any work. Light: no torch, no ONNX."""

from __future__ import annotations

from typing import Any

from edgequant.errors import UserError
from edgequant.export.formats import ONNX
from edgequant.quantization.scheme import Scheme, WeightSpec

GEMMA = "gemma3_text"
ARCHITECTURES = ("llama", "qwen2", "phi", GEMMA)
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")
ROTARY = ("default", "linear", "llama3", "yarn")  # whose angles are the same at all lengths
CONTAINERS = (2, 4, 8)  # bits that MatMulNBits and GatherBlockQuantized take
LEAST_BLOCK, WIDEST_BLOCK, PADDED_BLOCK = 16, 128, 32
HEAD_RUN = 8  # the kernel of attention takes heads of a multiple of so many features


def container_of(bits: int) -> int:
    """The least width of the operators that holds integers of so many bits."""
    return next(width for width in CONTAINERS if width >= bits)


def block_size(spec: WeightSpec, features: int) -> int | None:
    """Inputs of a block so that no block has two scales; None where groups do not consist of blocks.

    Blocks are powers of two. Rows with one scale whose length is no multiple of a block are padded.
    """
    length = spec.group_size or features
    size = min(WIDEST_BLOCK, length & -length)  # the largest power of two that divides it
    if size >= LEAST_BLOCK:
        return size
    return None if spec.group_size else PADDED_BLOCK


def check_scheme(scheme: Scheme) -> None:
    """Refuse a scheme whose numbers MatMulNBits cannot hold.

    Raises:
        UserError: names what it lacks and the schemes that it holds.
    """
    specs = [spec for spec in (scheme.weight, scheme.embedding) if spec is not None]
    if not specs:
        lacking = "bitsandbytes' data types"
    elif any(spec.is_k_quant for spec in specs):
        lacking = "llama.cpp's blocks of 256 with scales of scales"
    elif any(spec.zero_point == "real" for spec in specs):
        lacking = "a real minimum for each group, only integer zero points"
    elif scheme.activation is not None and scheme.activation.mode == "static":
        lacking = "fixed ranges of inputs: it finds them for each token"
    elif odd := [spec.group_size for spec in specs if block_size(spec, PADDED_BLOCK) is None]:
        lacking = f"groups of {odd[0]}: they must be multiples of {LEAST_BLOCK}"
    else:
        return
    raise UserError(
        f"scheme {scheme.name} cannot be written as {ONNX}, whose MatMulNBits has no place for {lacking}; use "
        "w4a8-g32+emb4, w4-g32, w4-g64, w4-g128, w8, w8a8, q8_0 or q4_0"
    )


def check_configuration(config: Any, tokenizer: Any = None) -> None:
    """Refuse a model of which the graph would be another model.

    Args:
        config: a transformers configuration.
        tokenizer: its tokenizer, where there is one already.

    Raises:
        UserError: an architecture that is not known here, a value that the graph has no place for, or no token that
            ends a text.
    """
    if tokenizer is not None and config.eos_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(
            f"model for {ONNX} must name the token that ends a text, got neither eos_token_id in its configuration nor "
            "eos_token in its tokenizer; add one to tokenizer_config.json"
        )
    if config.model_type not in ARCHITECTURES:
        raise UserError(f"architecture for {ONNX} must be one of {', '.join(ARCHITECTURES)}, got {config.model_type!r}")
    _must_be(config, "hidden_activation" if config.model_type == GEMMA else "hidden_act", ACTIVATIONS)
    for name, allowed in (
        ("qk_layernorm", (False, None)), ("attn_logit_softcapping", (None,)),
        ("use_bidirectional_attention", (False, None)),
    ):  # fmt: skip
        _must_be(config, name, allowed)
    if head_size(config) % HEAD_RUN:
        raise UserError(
            f"head_dim for {ONNX} must be a multiple of {HEAD_RUN}, got {head_size(config)}, which ONNX Runtime's "
            "attention does not take; keep the model as a folder"
        )
    for name, rope in rotary_parameters(config):
        _check_rotary(config, name, rope)


def head_size(config: Any) -> int:
    """Features of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotary_parameters(config: Any) -> list[tuple[str, dict[str, Any]]]:
    """Each set of rotary parameters, one for a kind of layer where there are several, with its name."""
    everything = getattr(config, "rope_parameters", None) or {}
    kinds = {kind: rope for kind, rope in everything.items() if isinstance(rope, dict)}
    return [(f"rope_parameters.{kind}", rope) for kind, rope in kinds.items()] or [("rope_parameters", everything)]


def _check_rotary(config: Any, name: str, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    same = rope.get("short_factor") == rope.get("long_factor") and rope.get("attention_factor") == 1.0
    if kind not in ROTARY and not (kind == "longrope" and same):
        raise _cannot(config, f"{name}.rope_type", kind, " or ".join(ROTARY))
    whole = config.model_type == "phi" or rope.get("partial_rotary_factor") in (None, 1.0)
    if not whole:
        raise _cannot(config, f"{name}.partial_rotary_factor", rope["partial_rotary_factor"], "1.0")


def _must_be(config: Any, name: str, allowed: tuple[Any, ...]) -> None:
    value = getattr(config, name, None)
    if value is not None and value not in allowed:
        raise _cannot(config, name, value, " or ".join(map(str, allowed)))


def _cannot(config: Any, name: str, value: Any, allowed: str) -> UserError:
    return UserError(
        f"{name} for {ONNX} must be {allowed} in architecture {config.model_type}, got {value!r}, which "
        "onnxruntime-genai's graph does not compute; keep the model as a folder"
    )
