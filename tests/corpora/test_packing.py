"""Packing keeps every token in order and pads nothing."""

from __future__ import annotations

import pytest

from edgequant.corpora.packing import pack
from edgequant.errors import UserError
from edgequant.models.tiny import tiny_tokenizer


def test_rows_are_the_token_stream_with_an_end_token_after_each_text() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["the river rose", "boats went out", "all came home"]
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    rows = pack(texts, tokenizer, 8)
    assert rows.flatten().tolist() == stream[: len(stream) // 8 * 8]
    assert rows.shape[1] == 8


def test_too_little_text_is_refused_with_the_number_of_tokens() -> None:
    with pytest.raises(UserError, match="not one row of sequence_length 512"):
        pack(["short"], tiny_tokenizer(), 512)
