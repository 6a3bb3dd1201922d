"""What a configuration says that llama.cpp would compute otherwise, or not at all: refused by name before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgequant.errors import UserError, first_line
from edgequant.export.gguf.architectures import architecture_of, head_dim, rotated_features
from edgequant.export.gguf.rope import check_rope, kind_of, rope_of, yarn_stretch

SILU = ("silu", "swish")
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh")  # one function under several names


def check_expressible(config: Any) -> None:
    """Refuse a model of which a GGUF file would be another model.

    Args:
        config: a transformers configuration.

    Raises:
        UserError: an architecture that is not known here, or a value that llama.cpp's version of it has no place for.
    """
    check_rope(config, takes_divisors=architecture_of(config).takes_divisors)
    CHECKS[config.model_type](config)


def check_source(kind: str, location: Path) -> None:
    """`check_expressible` and the tokenizer of a model on disk, before its weights are loaded.

    Args:
        kind: `folder` or `gguf`.

    Raises:
        UserError: as there, or a configuration that transformers does not read.
    """
    from edgequant.export.gguf.tokenizer import check_tokenizer
    from edgequant.models import load_tokenizer

    config = _configuration_of(kind, location)
    check_expressible(config)
    check_tokenizer(load_tokenizer(str(location)), config.vocab_size)


def _configuration_of(kind: str, location: Path) -> Any:
    from transformers import AutoConfig

    from edgequant.models.gguf.configuration import read_configuration
    from edgequant.models.gguf.contents import read_contents

    if kind == "gguf":
        return read_configuration(read_contents(location))
    try:
        return AutoConfig.from_pretrained(str(location))
    except Exception as error:  # the configuration's own checks have many types
        raise UserError(f"{location / 'config.json'} could not be read by transformers: {first_line(error)}") from error


def _llama(config: Any) -> None:
    _must_be(config, "hidden_act", SILU)
    _check_whole_heads_are_rotated(config)


def _qwen2(config: Any) -> None:
    _must_be(config, "hidden_act", SILU)
    _check_whole_heads_are_rotated(config)
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        raise _cannot("qwen2", "layer_types", "'sliding_attention'", "full_attention in all layers")


def _phi(config: Any) -> None:
    _must_be(config, "hidden_act", TANH_GELU)
    _must_be(config, "qk_layernorm", (False, None))
    if head_dim(config) * config.num_attention_heads != config.hidden_size:
        usual = config.hidden_size // config.num_attention_heads
        raise _cannot("phi", "head_dim", head_dim(config), f"hidden_size / num_attention_heads = {usual}")
    if rotated_features(config) % 2:
        raise _cannot("phi", "partial_rotary_factor", rotated_features(config), "an even number of features")


def _gemma3(config: Any) -> None:
    _must_be(config, "hidden_activation", TANH_GELU)
    _must_be(config, "attention_bias", (False, None))
    _must_be(config, "attn_logit_softcapping", (None,))
    _must_be(config, "use_bidirectional_attention", (False, None))
    _check_whole_heads_are_rotated(config)
    # llama.cpp divides by the root of the head's size, but for the 62-layer model by hidden_size / heads.
    scalar = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == 62 else head_dim(config)
    _must_be(config, "query_pre_attn_scalar", (scalar,))
    if "sliding_attention" not in config.layer_types:
        raise _cannot("gemma3_text", "layer_types", "full_attention everywhere", "'sliding_attention' in some layers")
    local, full = config.rope_parameters["sliding_attention"], rope_of(config)
    if kind_of(local) != "default":
        raise _cannot("gemma3_text", "rope_parameters.sliding_attention.rope_type", repr(kind_of(local)), "'default'")
    if kind_of(full) == "yarn" and yarn_stretch(full, float(full["factor"])) != 1.0:
        raise _cannot(
            "gemma3_text", "rope_parameters.full_attention.attention_factor", full.get("attention_factor"), "yarn's own"
        )


def _check_whole_heads_are_rotated(config: Any) -> None:
    everything = getattr(config, "rope_parameters", None) or {}
    for rope in (everything, *(one for one in everything.values() if isinstance(one, dict))):
        if rope.get("partial_rotary_factor") not in (None, 1.0):
            raise _cannot(
                config.model_type, "rope_parameters.partial_rotary_factor", rope["partial_rotary_factor"], "1.0"
            )


def _must_be(config: Any, name: str, allowed: tuple[Any, ...]) -> None:
    value = getattr(config, name, allowed[0])
    if value not in allowed:
        raise _cannot(config.model_type, name, repr(value), " or ".join(repr(one) for one in allowed))


def _cannot(model_type: str, name: str, value: Any, allowed: str) -> UserError:
    return UserError(
        f"{name} for GGUF must be {allowed} in architecture {model_type}, got {value}, which llama.cpp does not "
        "compute; keep the model as a folder"
    )


CHECKS: dict[str, Callable[[Any], None]] = {"llama": _llama, "qwen2": _qwen2, "phi": _phi, "gemma3_text": _gemma3}
