"""From the fields of a GGUF file to a transformers configuration; fields without a counterpart are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgequant.errors import UserError
from edgequant.models.gguf.contents import Contents
from edgequant.models.gguf.rope import FACTORS, LONG, SHORT, read_rope

ATTENTION_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
MLP_BIASES = ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
NO_TOKEN = 0xFFFFFFFF  # -1 in a field without sign
# Fields that change nothing, whatever they say; the vocabulary's size is that of the embedding.
MEANINGLESS = ("vocab_size", "tensor_data_layout", "mm.tokens_per_image")
# Fields that change nothing at these values.
OFF: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "attention.sliding_window": (0,),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (True,),  # Phi's; the others do not have the field
}


@dataclass(frozen=True)
class Architecture:
    """How one of llama.cpp's architectures is read as one of transformers'.

    Attributes:
        model_type: transformers' name.
        read: the configuration's values that only this architecture has.
        interleaved_rotary: rows of q and k are reordered, see `tensors`.
        norm_offset: what llama.cpp's RMSNorm weights have more than transformers'.
        bias_of: tensors whose presence says that the layers have biases, by the configuration's key.
        frequency_tensors: names that llama.cpp reads here.
    """

    model_type: str
    read: Callable[[Contents], dict[str, Any]]
    interleaved_rotary: bool = False
    norm_offset: float = 0.0
    frequency_tensors: tuple[str, ...] = ()


def architecture_of(contents: Contents) -> Architecture:
    """How the file's architecture is read.

    Raises:
        UserError: it is not one of those known here.
    """
    name = contents.architecture
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise contents.refused(
            f"architecture must be one of {known}, got {name!r}; give the model's transformers folder instead"
        )
    return ARCHITECTURES[name]


def read_configuration(contents: Contents) -> Any:
    """The transformers configuration of the model in the file.

    Raises:
        UserError: an unknown architecture, a missing field, or a field that changes what the model computes and has no
            counterpart in transformers.
    """
    from transformers import AutoConfig

    architecture = architecture_of(contents)
    values = _common(contents) | architecture.read(contents)
    _check_nothing_is_left(contents, values["max_position_embeddings"])
    unread = [name for name in (FACTORS, SHORT, LONG) if name in contents.tensors]
    if stray := [name for name in unread if name not in architecture.frequency_tensors]:
        raise contents.refused(f"tensor {stray[0]} is not read by llama.cpp in architecture {contents.architecture}")
    try:
        return AutoConfig.for_model(architecture.model_type, **values)
    except UserError:
        raise
    except Exception as error:  # the configuration's own checks have many types
        reason = str(error).strip().splitlines()[-1].strip()
        raise contents.refused(f"transformers has no such {architecture.model_type} ({reason})") from error


def _common(contents: Contents) -> dict[str, Any]:
    heads = _positive(contents, "attention.head_count")
    return {
        "vocab_size": vocabulary_size(contents),
        "hidden_size": _positive(contents, "embedding_length"),
        "intermediate_size": _positive(contents, "feed_forward_length"),
        "num_hidden_layers": _layers(contents),
        "num_attention_heads": heads,
        "num_key_value_heads": int(contents.take("attention.head_count_kv", heads)),
        "max_position_embeddings": _positive(contents, "context_length"),
        "tie_word_embeddings": "output.weight" not in contents.tensors or _head_is_the_embedding(contents),
        **{f"{name}_token_id": token_id(contents, name) for name in ("bos", "eos", "pad")},
    }


def _positive(contents: Contents, key: str) -> int:
    value = int(contents.require(key))
    if value <= 0:
        raise contents.refused(f"field {contents.architecture}.{key} must be positive, got {value}")
    return value


def _layers(contents: Contents) -> int:
    layers = int(contents.require("block_count"))
    if not 0 < layers <= len(contents.tensors):  # a damaged number would be built
        raise contents.refused(
            f"{contents.architecture}.block_count {layers:,} goes with {len(contents.tensors)} tensors"
        )
    return layers


def token_id(contents: Contents, name: str) -> int | None:
    """The id of a special token, `bos`, `eos`, `pad` or `unk`; None where the model has none.

    Raises:
        UserError: beyond the vocabulary.
    """
    key = f"{SPECIAL_TOKENS[name]}_token_id"
    index = contents.tokenizer(key)
    if index is None or index == NO_TOKEN:
        return None
    size = len(contents.tokenizer("tokens") or ())
    if size and not 0 <= index < size:
        raise contents.refused(f"tokenizer.ggml.{key} must be below the vocabulary's {size}, got {index}")
    return int(index)


def vocabulary_size(contents: Contents) -> int:
    """Rows of the embedding.

    Raises:
        UserError: there is no embedding, or there are more or fewer tokens.
    """
    if "token_embd.weight" not in contents.tensors:
        raise contents.refused("tensor token_embd.weight not found; the file holds no model")
    rows, tokens = int(contents.tensors["token_embd.weight"].shape[-1]), contents.tokenizer("tokens")
    if tokens and len(tokens) != rows:
        raise contents.refused(f"{len(tokens):,} tokens for an embedding of {rows:,} rows")
    return rows


def _head_is_the_embedding(contents: Contents) -> bool:
    """llama.cpp wants an output matrix of some architectures also where it is the embedding once more."""
    head, embedding = contents.tensors["output.weight"], contents.tensors["token_embd.weight"]
    alike = head.tensor_type == embedding.tensor_type and head.data.shape == embedding.data.shape
    return alike and bool((head.data == embedding.data).all())


def _check_nothing_is_left(contents: Contents, context: int) -> None:
    for name, value in contents.left().items():
        covers_all = name == "attention.sliding_window" and isinstance(value, int) and value >= context
        if name in MEANINGLESS or covers_all or value in OFF.get(name, ()):
            continue
        shown = f"{value!r:.60}"
        raise contents.refused(
            f"field {contents.architecture}.{name} = {shown} has no counterpart in transformers' "
            f"{architecture_of(contents).model_type}; give the model's transformers folder instead"
        )


def _head_size(contents: Contents) -> int:
    embedding, heads = int(contents.require("embedding_length")), int(contents.require("attention.head_count"))
    key = int(contents.take("attention.key_length", embedding // heads))
    value = int(contents.take("attention.value_length", embedding // heads))
    if key != value:
        raise contents.refused(f"keys of {key} features with values of {value} have no counterpart in transformers")
    return key


def _own_head_size(contents: Contents) -> dict[str, int]:
    """For configurations that have no `head_dim`, but whose model follows one."""
    size = _head_size(contents)
    usual = int(contents.require("embedding_length")) // int(contents.require("attention.head_count"))
    return {} if size == usual else {"head_dim": size}


def _rotated(contents: Contents) -> int:
    size = _head_size(contents)
    return int(contents.take("rope.dimension_count", size))


def _rope_over_whole_heads(contents: Contents) -> dict[str, Any]:
    size, rotated = _head_size(contents), _rotated(contents)
    if rotated != size:
        raise contents.refused(
            f"rope.dimension_count must be the head's {size} features in {contents.architecture}, got {rotated}"
        )
    return read_rope(contents, rotated, int(contents.require("context_length")))


def _has_any(contents: Contents, endings: tuple[str, ...]) -> bool:
    return any(name.endswith(endings) for name in contents.tensors)


def _llama(contents: Contents) -> dict[str, Any]:
    return {
        "rms_norm_eps": float(contents.require("attention.layer_norm_rms_epsilon")),
        "head_dim": _head_size(contents),
        "rope_parameters": _rope_over_whole_heads(contents),
        "attention_bias": _has_any(contents, ATTENTION_BIASES),
        "mlp_bias": _has_any(contents, MLP_BIASES),
    }


def _qwen2(contents: Contents) -> dict[str, Any]:
    return {
        "rms_norm_eps": float(contents.require("attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope_over_whole_heads(contents),
        "use_sliding_window": False,
        **_own_head_size(contents),
    }


def _phi(contents: Contents) -> dict[str, Any]:
    size, rotated = _head_size(contents), _rotated(contents)
    fraction = rotated / size
    if int(fraction * size) != rotated:  # transformers computes the number again
        fraction = (rotated + 0.5) / size
    rope = read_rope(contents, rotated, int(contents.require("context_length")))
    return {
        "layer_norm_eps": float(contents.require("attention.layer_norm_epsilon")),
        "rope_parameters": rope | {"partial_rotary_factor": fraction},
        **_own_head_size(contents),
    }


def _gemma3(contents: Contents) -> dict[str, Any]:
    size, layers = _head_size(contents), int(contents.require("block_count"))
    usual = int(contents.require("embedding_length")) // int(contents.require("attention.head_count"))
    full = _rope_over_whole_heads(contents)
    local = {"rope_type": "default", "rope_theta": float(contents.take("rope.freq_base_swa", 10_000.0))}
    softcap = float(contents.take("final_logit_softcapping", 0.0))
    return {
        "rms_norm_eps": float(contents.require("attention.layer_norm_rms_epsilon")),
        "head_dim": size,
        "query_pre_attn_scalar": usual if layers == 62 else size,  # as llama.cpp does: the model of 27 B
        "sliding_window": int(contents.require("attention.sliding_window")),
        "layer_types": _layer_types(contents, layers),
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "final_logit_softcapping": softcap or None,
    }


def _layer_types(contents: Contents, layers: int) -> list[str]:
    """llama.cpp: a period, whose last layer sees everything, or a flag for each layer that slides; 6 by default."""
    given = contents.take_list("attention.sliding_window_pattern")
    if isinstance(given, list):
        if len(given) != layers:
            raise contents.refused(f"sliding_window_pattern must have {layers} values, one a layer, got {len(given)}")
        slides = [bool(one) for one in given]
    else:
        period = 6 if given is None else int(given)
        slides = [period == 0 or layer % period < period - 1 for layer in range(layers)]
    return ["sliding_attention" if one else "full_attention" for one in slides]


ARCHITECTURES = {
    "llama": Architecture("llama", _llama, interleaved_rotary=True, frequency_tensors=(FACTORS, SHORT, LONG)),
    "qwen2": Architecture("qwen2", _qwen2),
    "phi2": Architecture("phi", _phi),
    "gemma3": Architecture("gemma3_text", _gemma3, norm_offset=1.0),
}
