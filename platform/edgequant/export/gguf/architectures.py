"""What llama.cpp has to be told about each architecture: hyper-parameters, and where conventions differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter
from torch import Tensor

from edgequant.errors import UserError
from edgequant.export.gguf.rope import frequency_divisors, rope_of, theta_of, write_rope

FREQUENCY_DIVISORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """How one transformers architecture becomes one of llama.cpp's.

    Attributes:
        gguf: llama.cpp's name for it.
        write: writes the hyper-parameters that only this architecture has.
        interleaved_rotary: llama.cpp rotates neighbouring pairs where transformers rotates halves, so that the rows of
            q_proj and k_proj have to be reordered.
        norm_offset: added to RMSNorm weights: Gemma's layer multiplies by (1 + weight), llama.cpp by the weight.
        takes_divisors: llama.cpp reads a tensor of divisors of the rotary frequencies.
        needs_own_head: llama.cpp reads an output matrix even where transformers ties it to the embedding.
    """

    gguf: MODEL_ARCH
    write: Callable[[GGUFWriter, Any], None]
    interleaved_rotary: bool = False
    norm_offset: float = 0.0
    takes_divisors: bool = False
    needs_own_head: bool = False


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model's configuration.

    Raises:
        UserError: llama.cpp may know it, this export does not.
    """
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"architecture for GGUF must be one of {known}, got {config.model_type!r}")
    if config.model_type == "qwen2" and head_dim(config) * config.num_attention_heads != config.hidden_size:
        return LLAMA  # llama.cpp's qwen2 has square projections only; its llama has all that a Qwen2 layer has
    return ARCHITECTURES[config.model_type]


def write_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    """Write what every decoder has, then what only this one has. See `expressible.check_expressible`."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(key_value_heads(config))
    writer.add_vocab_size(config.vocab_size)
    architecture_of(config).write(writer, config)
    write_rope(writer, config)


def head_dim(config: Any) -> int:
    """Features of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotated_features(config: Any) -> int:
    """Features of a head that Phi rotates."""
    fraction = rope_of(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(float(fraction) * head_dim(config))


def row_order(architecture: Architecture, config: Any, name: str) -> Tensor | None:
    """The order in which the rows of a tensor are written, or None for the order they have.

    transformers rotates feature i of a head with feature i + d/2 (the two halves), llama.cpp's `llama` rotates 2i with
    2i + 1; both compute the same attention if q and k change places together.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": key_value_heads(config)}
    layer = name.rpartition(".")[0].rpartition(".")[2]
    if not architecture.interleaved_rotary or layer not in heads:
        return None
    rows = torch.arange(heads[layer] * head_dim(config))
    return rows.view(heads[layer], 2, head_dim(config) // 2).transpose(1, 2).flatten()


def extra_tensors(config: Any) -> dict[str, Any]:
    """Tensors that llama.cpp has and transformers has not, by name."""
    divisors = frequency_divisors(config, head_dim(config))
    return {} if divisors is None else {FREQUENCY_DIVISORS: divisors.numpy()}


def _llama(writer: GGUFWriter, config: Any) -> None:
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim(config))
    _write_head_size(writer, config)


def _qwen2(writer: GGUFWriter, config: Any) -> None:
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _phi(writer: GGUFWriter, config: Any) -> None:
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_rope_dimension_count(rotated_features(config))


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_head_size(writer, config)
    writer.add_sliding_window(config.sliding_window)
    pattern = [kind == "sliding_attention" for kind in config.layer_types]
    if pattern != [layer % 6 < 5 for layer in range(len(pattern))]:  # llama.cpp's default; older ones know no other
        writer.add_array(f"{writer.arch}.attention.sliding_window_pattern", pattern)  # gguf 0.17 has no names for these
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_float32(f"{writer.arch}.rope.freq_base_swa", theta_of(config.rope_parameters["sliding_attention"]))


def _write_head_size(writer: GGUFWriter, config: Any) -> None:
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))


def key_value_heads(config: Any) -> int:
    """Heads of keys and values: as many as of queries where the configuration does not say."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


LLAMA = Architecture(MODEL_ARCH.LLAMA, _llama, interleaved_rotary=True, takes_divisors=True)
ARCHITECTURES = {
    "llama": LLAMA,
    "qwen2": Architecture(MODEL_ARCH.QWEN2, _qwen2),
    "phi": Architecture(MODEL_ARCH.PHI2, _phi, needs_own_head=True),
    "gemma3_text": Architecture(MODEL_ARCH.GEMMA3, _gemma3, norm_offset=1.0),
}
