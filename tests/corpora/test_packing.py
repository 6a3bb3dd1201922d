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


def test_the_same_texts_are_tokenised_once_and_other_texts_or_tokenizers_anew() -> None:
    tokenizer, calls = tiny_tokenizer(), []

    class Counting:
        """The tokenizer, counting the texts that go through it."""

        backend_tokenizer, eos_token_id = tokenizer.backend_tokenizer, tokenizer.eos_token_id

        def __call__(self, text: str, **options: object) -> object:
            calls.append(text)
            return tokenizer(text, **options)

    texts = [f"the river rose by {metres} metres" for metres in range(3)]
    first = pack(texts, Counting(), 8)
    first[0] = 0  # the caller's own
    expected = pack(texts, Counting(), 8)
    assert calls == texts and expected[0].tolist() == tokenizer(texts[0])["input_ids"][:8]
    assert pack(texts, Counting(), 4).flatten()[: expected.numel()].equal(expected.flatten()) and calls == texts
    pack(["".join(texts)], Counting(), 8)
    pack(texts[::-1], Counting(), 8)
    other = Counting()
    other.eos_token_id = 7
    assert pack(texts, other, 8).flatten().tolist().count(7) == 2  # the third is in no whole row
    assert len(calls) == 3 + 1 + 3 + 3


def test_a_tokenizer_that_cannot_be_told_from_others_is_asked_each_time() -> None:
    class Words:
        eos_token_id = None
        shift = 0

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [len(word) + self.shift for word in text.split()]}

    words = Words()
    assert pack(["the river rose"], words, 3).tolist() == [[3, 5, 4]]
    words.shift = 1
    assert pack(["the river rose"], words, 3).tolist() == [[4, 6, 5]]
