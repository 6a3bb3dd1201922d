"""Pack texts into rows of equal length, the form in which a language model is trained and calibrated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgequant.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def pack(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> torch.LongTensor:
    """Concatenate the tokens of all texts and cut them into full rows.

    Texts are separated by the tokenizer's end-of-sequence token, where it has one; each starts with the
    beginning-of-sequence token if the tokenizer itself adds one. The incomplete last row is dropped, so that no
    padding enters a loss.

    Returns:
        Token ids of shape [n, sequence_length], dtype int64.

    Raises:
        UserError: sequence_length is below 2, or the texts do not fill a single row.
    """
    import torch

    if sequence_length < 2:
        raise UserError(f"sequence_length must be at least 2 tokens, got {sequence_length}")
    stream: list[int] = []
    for text in texts:
        stream.extend(_with_end(tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id))
    rows = len(stream) // sequence_length
    if rows == 0:
        raise UserError(
            f"the texts give {len(stream)} tokens, not one row of sequence_length {sequence_length}; "
            "use more text or a shorter sequence_length"
        )
    ids = torch.tensor(stream[: rows * sequence_length], dtype=torch.long)
    return ids.view(rows, sequence_length)  # type: ignore[return-value]


def _with_end(ids: list[int], end: int | None) -> list[int]:
    already_ended = bool(ids) and ids[-1] == end
    return ids if end is None or already_ended else [*ids, end]
