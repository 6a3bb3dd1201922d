"""Configurations of the four architectures: those that a GGUF file holds, and those that it does not."""

from __future__ import annotations

from typing import Any

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FACTORS = [1.0 + 0.5 * index for index in range(8)]
LONGROPE = {
    "rope_type": "longrope", "short_factor": FACTORS, "long_factor": [2 * one for one in FACTORS], "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SAME_AT_ALL_LENGTHS = LONGROPE | {"long_factor": FACTORS, "attention_factor": 1.0, "factor": 1.0}
DEFAULT = {"rope_type": "default", "rope_theta": 500_000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
MSCALE = YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}


def rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """The configuration's value for three of the architectures."""
    return {"rope_parameters": {"rope_theta": 10_000.0, **parameters}}


def gemma_rope(full: dict[str, Any], sliding: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration's value for Gemma 3, whose layers have two kinds of attention."""
    local = {"rope_type": "default", "rope_theta": 777.0, **(sliding or {})}
    return {"rope_parameters": {"full_attention": {"rope_theta": 300_000.0, **full}, "sliding_attention": local}}


PATTERN = ["full_attention", "sliding_attention"] * 3 + ["full_attention"]
ROPES = {"default": DEFAULT, "linear": LINEAR, "yarn": YARN}
STRETCHED = {"yarn with a factor on the attention": YARN | {"attention_factor": 1.3}, "yarn with mscale": MSCALE}
HELD: list[tuple[str, str, dict[str, Any]]] = [
    *((name, kind, rope(one)) for name in ("llama", "qwen2", "phi") for kind, one in (ROPES | STRETCHED).items()),
    *(("gemma3", kind, gemma_rope(one)) for kind, one in ROPES.items()),
    ("llama", "llama3", rope(LLAMA3)),
    ("llama", "longrope that is the same at all lengths", rope(SAME_AT_ALL_LENGTHS)),
    ("llama", "heads of their own size", {"head_dim": 32}),
    ("llama", "biases of the attention", {"attention_bias": True}),
    ("llama", "biases of the MLP", {"mlp_bias": True}),
    ("llama", "another epsilon", {"rms_norm_eps": 0.05}),
    ("llama", "as many key-value heads as heads", {"num_key_value_heads": 4}),
    ("qwen2", "heads of their own size", {"head_dim": 32}),
    ("qwen2", "heads of their own size with llama3", {"head_dim": 32, **rope(LLAMA3)}),
    ("phi", "all of a head rotated", {"partial_rotary_factor": 1.0}),
    ("phi", "a quarter of a head rotated", {"partial_rotary_factor": 0.25}),
    ("phi", "two key-value heads", {"num_key_value_heads": 2}),
    ("gemma3", "capped logits", {"final_logit_softcapping": 3.0}),
    ("gemma3", "every second layer sliding", {"layer_types": PATTERN}),
    ("gemma3", "every third layer full", {"sliding_window_pattern": 3}),
    ("gemma3", "all layers sliding", {"layer_types": ["sliding_attention"] * 7}),
]
# architecture, configuration, what the refusal names
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((name, rope(DYNAMIC), "'dynamic'") for name in ("llama", "qwen2", "phi")),
    ("gemma3", gemma_rope(DYNAMIC), "'dynamic'"),
    ("llama", rope(LONGROPE), "'longrope'"),
    ("qwen2", rope(LONGROPE), "'longrope'"),
    ("phi", rope(LONGROPE | {"short_factor": FACTORS[:4], "long_factor": FACTORS[:4]}), "'longrope'"),
    ("gemma3", gemma_rope(LONGROPE | {"short_factor": FACTORS * 2, "long_factor": FACTORS * 2}), "'longrope'"),
    *((name, rope(LLAMA3), "'llama3'") for name in ("qwen2", "phi")),
    ("gemma3", gemma_rope(LLAMA3), "'llama3'"),
    ("llama", rope(YARN | {"truncate": False}), "truncate"),
    ("qwen2", rope(YARN | {"beta_fast": 8.0}), "beta_fast"),
    ("phi", rope(YARN | {"beta_slow": 0.1}), "beta_slow"),
    ("gemma3", gemma_rope(YARN | {"attention_factor": 1.3}), "attention_factor"),
    ("gemma3", gemma_rope(DEFAULT, LINEAR), r"sliding_attention\.rope_type"),
    ("llama", rope(DEFAULT | {"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act .*'gelu'"),
    ("qwen2", {"hidden_act": "relu"}, "hidden_act .*'relu'"),
    ("phi", {"hidden_act": "gelu"}, "hidden_act .*'gelu'"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm"),
    ("phi", {"head_dim": 32}, "head_dim"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "layer_types"),
    ("gemma3", {"hidden_activation": "silu"}, "hidden_activation .*'silu'"),
    ("gemma3", {"attention_bias": True}, "attention_bias"),
    ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
    ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types"),
]
