"""Random models of the methodology's four architectures, tied and untied."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 264}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ENDS = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 257}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
KINDS: dict[str, Any] = {
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS, **ENDS, **more)),
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, **ENDS, **more)),
    "phi": lambda **more: PhiForCausalLM(PhiConfig(**SIZES, num_attention_heads=4, **ENDS, **more)),
    "gemma3": lambda **more: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **HEADS, **ENDS, **GEMMA, **more)),
}
LINEARS_PER_LAYER = {"qwen2": 7, "llama": 7, "phi": 6, "gemma3": 7}


def make(kind: str, tied: bool) -> Any:
    torch.manual_seed(0)
    model = KINDS[kind](tie_word_embeddings=tied).eval()
    with torch.no_grad():  # norms and biases too, so that a lost one shows
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
