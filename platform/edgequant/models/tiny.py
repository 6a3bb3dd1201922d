"""`tiny`: a model of random weights for tests, which needs no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgequant.files import cache_dir, sha256_of_bytes
from edgequant.models.devices import cast
from edgequant.models.folders import kept_folder

TINY_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def tiny_folder() -> Path:
    """The `tiny` model as a transformers folder in the cache."""
    folder = cache_dir() / "models" / f"tiny-{sha256_of_bytes(json.dumps(TINY_SIZES))[:8]}"
    return kept_folder(folder, lambda: (tiny_model("float32"), tiny_tokenizer()))


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer: 256 bytes, an end-of-text and a padding token; every text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|padding|>", model_max_length=2048
    )


def tiny_model(dtype: str = "float32", seed: int = 0) -> Any:
    """A random 2-layer Qwen2 (0.5 M parameters, tied embeddings) that trains in seconds on a CPU."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        **TINY_SIZES,
        vocab_size=264,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    return cast(model, dtype).eval()
