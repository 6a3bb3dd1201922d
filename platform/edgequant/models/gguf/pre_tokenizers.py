"""How byte-level tokenizers cut text before merging: llama.cpp's names for the ways, and what each does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GPT2, DIGITS, BYTES = "ByteLevel with its own pattern", "Digits one by one", "ByteLevel"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# name: the steps; any step that is none of the three is a pattern whose matches are cut out
WAYS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2,),
    "smollm": (DIGITS, GPT2),
    "qwen2": (QWEN2, BYTES),
    "llama-bpe": (LLAMA3, BYTES),
}
# other names under which llama.cpp does the same
ALIASES = {
    "phi-2": "gpt-2", "olmo": "gpt-2", "mpt": "gpt-2",
    "starcoder": "smollm", "refact": "smollm", "codeshell": "smollm", "command-r": "smollm",
    "deepseek-r1-qwen": "qwen2", "stablelm2": "qwen2",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe",
}  # fmt: skip
# llama.cpp takes a word that is a token as it is, without merging, and begins every text with the first token
WHOLE_WORDS_FIRST = ("llama-bpe",)


def pre_tokenizer(steps: tuple[str, ...]) -> Any:
    """The steps as a pre-tokenizer of the tokenizers package."""
    from tokenizers import Regex, pre_tokenizers

    known: dict[str, Callable[[], Any]] = {
        GPT2: lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        BYTES: lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        DIGITS: lambda: pre_tokenizers.Digits(individual_digits=True),
    }
    made = [known[one]() if one in known else pre_tokenizers.Split(Regex(one), "isolated") for one in steps]
    return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)
