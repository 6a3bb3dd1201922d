"""Random small models of the four architectures, with a tokenizer made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

ARCHITECTURES = ("qwen2", "llama", "phi", "gemma3")
VOCABULARY = 300
PASSAGE = "The river rose two metres in the night and the lower town was asked to leave before dawn. "


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """A byte-level tokenizer with an end-of-text token, a BOS token that it does not add, and no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: at for at, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")


def _config(architecture: str) -> Any:
    import transformers as t

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    if architecture == "phi":
        return t.PhiConfig(**sizes, partial_rotary_factor=0.5)
    sizes["num_key_value_heads"] = 2
    if architecture == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        return t.Gemma3TextConfig(**sizes, head_dim=8, sliding_window=24, layer_types=layers, query_pre_attn_scalar=8)
    return {"qwen2": t.Qwen2Config, "llama": t.LlamaConfig}[architecture](**sizes)


@pytest.fixture(scope="session")
def small_model() -> Callable[[str], Any]:
    """Make a random 2-layer model; weights are large enough that its answers differ from prompt to prompt."""
    made: dict[str, Any] = {}

    def make(architecture: str) -> Any:
        if architecture not in made:
            from transformers import AutoModelForCausalLM

            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(_config(architecture)).eval()
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.data.mul_(4)
            made[architecture] = model
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def questions() -> list[dict]:
    """Twelve questions on four paragraphs of different lengths, with both BoolQ's and SQuAD's columns."""
    return [
        {
            "id": f"q{paragraph}{number}",
            "title": "Flood",
            "context": PASSAGE * (1 + paragraph),
            "passage": PASSAGE * (1 + paragraph),
            "question": f"was the {place} flooded",
            "answer": number % 2 == 0,
            "answers": {"text": ["two metres"], "answer_start": [15]},
        }
        for paragraph in range(4)
        for number, place in enumerate(("lower town", "old bridge", "school yard by the river"))
    ]
