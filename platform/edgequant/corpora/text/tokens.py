"""Counting tokens with the target model's tokenizer, in any process, without importing transformers there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.files import cache_dir, sha256_of, sha256_of_bytes, write_atomically


def tokenizer_file(source: str) -> Path:
    """The tokenizer of a model or folder as one `tokenizer.json` in the cache, named by its content.

    Raises:
        UserError: the source has no tokenizer, or only one in Python code.
    """
    stated = Path(source).expanduser() / "tokenizer.json"
    if stated.is_file():  # a folder with nothing but tokenizer files will do, and transformers need not be imported
        return _kept(stated.read_text(encoding="utf-8"))
    from edgequant.models.loading import load_tokenizer
    from edgequant.models.sources import resolve

    fixed = cache_dir() / "corpus" / "tokenizers" / f"{source}.sha256" if resolve(source).kind == "embedded" else None
    if fixed and fixed.is_file():  # comes with a pinned package: transformers need not be imported to see the same
        digest = fixed.read_text(errors="replace")
        if re.fullmatch("[0-9a-f]{64}", digest) and (kept := _place(digest)).is_file() and sha256_of(kept) == digest:
            return kept
    backend = getattr(load_tokenizer(source), "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"tokenizer {source!r} has no fast form (tokenizer.json); save one with its save_pretrained")
    kept = _kept(backend.to_str())
    if fixed:
        write_atomically(fixed, sha256_of(kept))
    return kept


def _kept(content: str) -> Path:
    path = _place(digest := sha256_of_bytes(content))
    if not path.exists() or sha256_of(path) != digest:
        write_atomically(path, content)
    return path


def _place(digest: str) -> Path:
    return cache_dir() / "corpus" / "tokenizers" / f"{digest[:16]}.json"


class TokenCounter:
    """Counts tokens of texts, special tokens aside."""

    def __init__(self, file: str | Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens, in batches that keep the encodings of a long document out of memory."""
        counts: list[int] = []
        for start in range(0, len(texts), 256):
            batch = self._tokenizer.encode_batch_fast(list(texts[start : start + 256]), add_special_tokens=False)
            counts.extend(len(encoding) for encoding in batch)
        return counts
