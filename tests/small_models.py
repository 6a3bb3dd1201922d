"""Random small models of the four architectures, with tokenizers of their kind trained on a few lines."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from edgequant import models as loading
from edgequant.models.loading import LoadedModel
from edgequant.models.sources import ModelSource
from edgequant.quantization import checkpoint
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.scheme import Scheme, parse_scheme

TEXT = [
    "The river rose 42 cm in 3 hours; boats reached the school at 16:30.",
    "Boil water for one minute, or treat it with chlorine. Don't drink flood water.",
    "  Two  spaces, a tab\tand a line end\nstay what they are: été, 水, 🙂.",
] * 4
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IDS = torch.randint(0, 256, (2, 96), generator=torch.Generator().manual_seed(1))
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}


def byte_level_tokenizer(*steps: Any, end: str = "<|end|>") -> PreTrainedTokenizerFast:
    """Byte-level BPE; `steps` are pre-tokenizers in place of GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if steps else gpt2
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=[end])
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def qwen2_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that cuts text as Qwen2 does, with a chat template."""
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    tokenizer = byte_level_tokenizer(
        split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), end="<|endoftext|>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def sentencepiece_like_tokenizer(adds_space: bool) -> PreTrainedTokenizerFast:
    """BPE with byte fallback and a first token, as Llama 2 (which adds a leading space) and Gemma (which does not)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    scheme = "first" if adds_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, pre_tokenizers.Metaspace(prepend_scheme=scheme)
    latin = [line.encode("ascii", "ignore").decode() for line in TEXT]
    trained.train_from_iterator(latin, trainers.BpeTrainer(vocab_size=380, special_tokens=special))
    learned = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer.model = models.BPE(learned["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
GEMMA = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32}
KINDS: dict[str, tuple[Any, dict[str, Any], Callable[[], PreTrainedTokenizerFast]]] = {
    "qwen2": (Qwen2Config, HEADS, qwen2_tokenizer),
    "llama": (LlamaConfig, HEADS, lambda: sentencepiece_like_tokenizer(adds_space=True)),
    "phi": (PhiConfig, {"num_attention_heads": 4}, byte_level_tokenizer),
    "gemma3": (
        Gemma3TextConfig,
        {**GEMMA, "sliding_window": 8, "num_hidden_layers": 7},
        lambda: sentencepiece_like_tokenizer(adds_space=False),
    ),
}


def small(name: str, tied: bool = False, **config: Any) -> LoadedModel:
    """A random model of an architecture, its configuration changed; attention in plain torch, as it is written down.

    The embedding has a few rows more than the vocabulary, as Qwen2.5's and Phi-1.5's have.
    """
    kind, usual, make_tokenizer = KINDS[name]
    tokenizer = make_tokenizer()
    given = {"tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    given |= {"vocab_size": -(-(len(tokenizer) + 5) // 32) * 32}
    torch.manual_seed(0)
    configuration = kind(**(SIZES | usual | given | config))
    model = AutoModelForCausalLM.from_config(configuration, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: a missing +1 or a lost bias must show
            parameter.normal_(0.0, 0.1 if parameter.dim() > 1 else 0.3)
    return LoadedModel(model, tokenizer, ModelSource("folder", "small", "small"))


def checkpoint_of(loaded: LoadedModel, scheme: str | Scheme, folder: Path, dtype: str = "float32") -> LoadedModel:
    """Quantise a copy, save it, and load it as a workflow does."""
    model, parsed = copy.deepcopy(loaded.model), parse_scheme(scheme) if isinstance(scheme, str) else scheme
    prepare(model, parsed)
    if has_static_ranges(model):
        calibrate(model, [IDS])
    convert(model)
    loading.cast(model, dtype)
    parameters = loaded.model.num_parameters()
    checkpoint.save(model, loaded.tokenizer, folder, parsed, parameters=parameters, made_from="tiny")
    return loading.load(str(folder), device="cpu")


LARGE_HEADS = {"head_dim": 256, "query_pre_attn_scalar": 256}  # transformers' own GGUF reader takes them for granted
ARCHITECTURES: dict[str, Callable[[bool], LoadedModel]] = {name: partial(small, name) for name in KINDS}
ARCHITECTURES["gemma3"] = partial(small, "gemma3", **LARGE_HEADS)
