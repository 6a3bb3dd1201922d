"""Tokenizers: read from files that are there, and never with ids that the model has no row for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.models.complete import readable_errors
from edgequant.models.configs import check_fetched

# transformers makes an empty tokenizer of a folder without any of these.
VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tekken.json", "vocab.model", "tokenizer.vocab", "spm.model", "source.spm"),
)
# Placeholders of multimodal models: Gemma 3's language models list one and have no row for it.
PLACEHOLDER = re.compile(r"\W+((start|end)_of_)?(image|img|audio|video|vision)\w*\W+", re.IGNORECASE)
SAMPLE = "Water rose 42 cm.\n"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the vocabulary of a tokenizer."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def load_tokenizer_of(location: str, **options: Any) -> Any:
    """The tokenizer of a folder, hub id or (`gguf_file`) GGUF file; its padding token is set.

    Raises:
        UserError: its files are not there or cannot be read, or it turns text into nothing.
    """
    from transformers import AutoTokenizer

    folder = Path(location)
    if "gguf_file" not in options and folder.is_dir() and not has_tokenizer(folder):
        raise UserError(
            f"tokenizer not found in model folder {location!r}: neither tokenizer.json nor another vocabulary; copy "
            "the tokenizer's files too"
        )
    for name in VOCABULARIES if folder.is_dir() else ():
        if (folder / name).is_file():
            check_fetched(folder / name)
    with readable_errors(f"the tokenizer of {location!r}", location):
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False, **options)
        ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"the tokenizer of {location!r} knows no text: {SAMPLE!r} has no tokens; copy its files again")
    if tokenizer.pad_token is None:  # Llama, Phi: batches need one, and the attention mask hides it
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_rows(tokenizer: Any, model: Any, location: str) -> None:
    """Refuse a tokenizer with tokens that the model's embedding has no row for.

    Raises:
        UserError: names some of the tokens.
    """
    rows = int(model.config.get_text_config().vocab_size)
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    unknown = [token for _, token in beyond if not PLACEHOLDER.fullmatch(token)]
    if unknown:
        shown = ", ".join(repr(token) for token in unknown[:3])
        raise UserError(
            f"the tokenizer of {location!r} has {len(unknown)} tokens that the embedding of {rows:,} rows has no row "
            f"for ({shown}{', ...' * (len(unknown) > 3)}); use the tokenizer that belongs to the model"
        )
