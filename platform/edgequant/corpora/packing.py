"""Pack texts into rows of equal length, the form in which a language model is trained and calibrated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgequant.corpora.kept_results import KeptResults
from edgequant.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MOST_KEPT = 1 << 22  # characters of a text whose tokens are kept for who packs it again: 8 bytes for each token
_kept: KeptResults[torch.Tensor] = KeptResults(most=4)


def pack(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> torch.LongTensor:
    """Concatenate the tokens of all texts and cut them into full rows.

    Texts are separated by the tokenizer's end-of-sequence token, where it has one; each starts with the
    beginning-of-sequence token if the tokenizer itself adds one. The incomplete last row is dropped, so that no
    padding enters a loss. Of the last texts the tokens are kept in memory, where they take little of it.

    Returns:
        Token ids of shape [n, sequence_length], dtype int64.

    Raises:
        UserError: sequence_length is below 2, or the texts do not fill a single row.
    """
    if sequence_length < 2:
        raise UserError(f"sequence_length must be at least 2 tokens, got {sequence_length}")
    stream = _stream(list(texts), tokenizer)
    rows = len(stream) // sequence_length
    if rows == 0:
        raise UserError(
            f"the texts give {len(stream)} tokens, not one row of sequence_length {sequence_length}; "
            "use more text or a shorter sequence_length"
        )
    return stream[: rows * sequence_length].clone().view(rows, sequence_length)  # type: ignore[return-value]


def _stream(texts: Sequence[str], tokenizer: Any) -> torch.Tensor:
    """The tokens of all texts, [n] int64; not to be changed."""
    import torch

    def made() -> torch.Tensor:
        stream: list[int] = []
        for text in texts:
            stream.extend(_with_end(tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id))
        return torch.tensor(stream, dtype=torch.long)

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # nothing says in full what it does
        return made()
    spelling = (type(tokenizer).__qualname__, backend.to_str(), repr(tokenizer.eos_token_id))
    return _kept.of([*spelling, *texts], made, keep=sum(map(len, texts)) <= MOST_KEPT)


def _with_end(ids: list[int], end: int | None) -> list[int]:
    already_ended = bool(ids) and ids[-1] == end
    return ids if end is None or already_ended else [*ids, end]
