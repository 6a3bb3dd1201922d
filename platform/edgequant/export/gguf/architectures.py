"""What llama.cpp has to be told about each architecture: hyper-parameters, and where conventions differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from torch import Tensor

from edgequant.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """How one transformers architecture becomes one of llama.cpp's.

    Attributes:
        gguf: llama.cpp's name for it.
        write: writes the hyper-parameters that only this architecture has, after checking that llama.cpp honours them.
        interleaved_rotary: llama.cpp rotates neighbouring pairs where transformers rotates halves, so that the rows of
            q_proj and k_proj have to be reordered.
        norm_offset: added to RMSNorm weights: Gemma's layer multiplies by (1 + weight), llama.cpp by the weight.
        needs_own_head: llama.cpp reads an output matrix even where transformers ties it to the embedding.
    """

    gguf: MODEL_ARCH
    write: Callable[[GGUFWriter, Any], None]
    interleaved_rotary: bool = False
    norm_offset: float = 0.0
    needs_own_head: bool = False


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model's configuration.

    Raises:
        UserError: llama.cpp may know it, this export does not.
    """
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"architecture for GGUF must be one of {known}, got {config.model_type!r}")
    return ARCHITECTURES[config.model_type]


def write_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    """Write what every decoder has, then what only this one has.

    Raises:
        UserError: the model uses a feature that llama.cpp would silently compute otherwise.
    """
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(_key_value_heads(config))
    writer.add_vocab_size(config.vocab_size)
    architecture_of(config).write(writer, config)


def head_dim(config: Any) -> int:
    """Features of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def row_order(architecture: Architecture, config: Any, name: str) -> Tensor | None:
    """The order in which the rows of a tensor are written, or None for the order they have.

    transformers rotates feature i of a head with feature i + d/2 (the two halves), llama.cpp's `llama` rotates 2i with
    2i + 1; both compute the same attention if q and k change places together.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": _key_value_heads(config)}
    layer = name.rpartition(".")[0].rpartition(".")[2]
    if not architecture.interleaved_rotary or layer not in heads:
        return None
    rows = torch.arange(heads[layer] * head_dim(config))
    return rows.view(heads[layer], 2, head_dim(config) // 2).transpose(1, 2).flatten()


def rope_frequency_factors(model: Any) -> Tensor | None:
    """Llama 3's stretched rotary frequencies as llama.cpp's divisors [head_dim / 2]; None for every other model."""
    config = model.config
    if _rope(config).get("rope_type", "default") != "llama3":
        return None
    inverse = model.model.rotary_emb.inv_freq.float().cpu()
    plain = 1.0 / _theta(_rope(config)) ** (torch.arange(0, head_dim(config), 2).float() / head_dim(config))
    return plain / inverse


def _llama(writer: GGUFWriter, config: Any) -> None:
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    _write_rope(writer, _rope(config), config)


def _qwen2(writer: GGUFWriter, config: Any) -> None:
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        raise UserError("this Qwen2 uses sliding-window attention, which llama.cpp computes as full attention")
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rope(writer, _rope(config), config)


def _phi(writer: GGUFWriter, config: Any) -> None:
    if config.qk_layernorm:
        raise UserError("this Phi normalises queries and keys (qk_layernorm), which llama.cpp's phi2 does not")
    rope = _rope(config)
    fraction = float(rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_rope_dimension_count(int(fraction * head_dim(config)))
    _write_rope(writer, rope, config)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    # llama.cpp divides by the root of the head's size, but for the 62-layer model by hidden_size / heads.
    scalar = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == 62 else head_dim(config)
    if config.query_pre_attn_scalar != scalar:
        raise UserError(
            f"query_pre_attn_scalar {config.query_pre_attn_scalar} differs from {scalar}, which llama.cpp would use"
        )
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_sliding_window(config.sliding_window)
    pattern = [kind == "sliding_attention" for kind in config.layer_types]
    if pattern != [layer % 6 < 5 for layer in range(len(pattern))]:  # llama.cpp's default; older ones know no other
        writer.add_sliding_window_pattern(pattern)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_rope_freq_base_swa(_theta(config.rope_parameters["sliding_attention"]))
    _write_rope(writer, config.rope_parameters["full_attention"], config)


def _write_rope(writer: GGUFWriter, rope: dict[str, Any], config: Any) -> None:
    writer.add_rope_freq_base(_theta(rope))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
    elif kind not in ("default", "llama3"):  # llama3's goes into a tensor
        raise UserError(f"rope_type for GGUF must be default, linear, yarn or llama3, got {kind!r}")


def _key_value_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    return dict(rope.get("full_attention", rope))


def _theta(rope: dict[str, Any]) -> float:
    return float(rope.get("rope_theta", 10_000.0))


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, _llama, interleaved_rotary=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, _qwen2),
    "phi": Architecture(MODEL_ARCH.PHI2, _phi, needs_own_head=True),
    "gemma3_text": Architecture(MODEL_ARCH.GEMMA3, _gemma3, norm_offset=1.0),
}
