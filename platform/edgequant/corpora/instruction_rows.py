"""Instructions with answers: read from a JSONL file, and as rows of tokens of which the answers alone are learnt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.corpora.text.decoding import read_text
from edgequant.errors import UserError

if TYPE_CHECKING:
    import torch


class Pair(NamedTuple):
    """What is asked for, and the answer that is learnt."""

    instruction: str
    answer: str

    @property
    def text(self) -> str:
        """Both, a line each: what of it is compared with text that is scored."""
        return f"{self.instruction}\n{self.answer}"


def read_instructions(path: str | Path, option: str = "dataset") -> list[Pair]:
    """Read a file with an object of `instruction` and `answer` on each line; further keys are left alone.

    Args:
        option: that named it, for messages.

    Raises:
        UserError: names file, line and what is wrong with it, or says that there is none.
    """
    path = Path(path).expanduser()
    lines = read_text(path, option).text.split("\n")
    pairs = [
        _pair(line, f"{option} {str(path)!r}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not pairs:
        raise UserError(f"{option} {str(path)!r} must hold instructions, a JSON object on each line, got an empty file")
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(
            f"{where}: must be a JSON object with instruction and answer, got {line.strip()!r:.60}"
        ) from None
    if not isinstance(row, dict) or not {"instruction", "answer"} <= {*row}:
        given = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(
            f"{where}: must have instruction and answer, got {given:.60}; of documents, make a data set first: "
            "`edgequant corpus --source FILE`"
        )
    for column in ("instruction", "answer"):
        if not isinstance(row[column], str) or not any(character.isalnum() for character in row[column]):
            raise UserError(f"{where}, {column}: must be text, got {row[column]!r:.60}")
    return Pair(row["instruction"].strip(), row["answer"].strip())


def instruction_rows(pairs: Sequence[Pair], tokenizer: Any, sequence_length: int) -> torch.LongTensor:
    """Pairs as rows of tokens of which only answers, and what ends them, are learnt.

    The instruction is rendered by the tokenizer's chat template, as a chat is; without one as the closed-book task
    asks: `Question: ...`, `Answer:`. Each row holds whole pairs, as many as fit; an answer that is too long for a row
    of its own is cut at its end. What is read and not learnt, padding too, is the complement of the token, below 0.

    Returns:
        [n, sequence_length], dtype int64; a token t >= 0 is learnt, t < 0 stands for the token ~t.

    Raises:
        UserError: every instruction fills a row, so that no answer fits.
    """
    import torch

    encoded = [_encoded(pair, tokenizer) for pair in pairs]
    fitting = [
        [*map(_unlearnt, read), *learnt][:sequence_length] for read, learnt in encoded if len(read) < sequence_length
    ]
    if not fitting:
        shortest = min(len(read) for read, _ in encoded)
        raise UserError(
            f"sequence_length must leave room for an answer, got {sequence_length}, and the shortest of "
            f"{len(pairs)} instructions takes {shortest} tokens; use a longer sequence_length"
        )
    padding = _unlearnt(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
    rows = [row + [padding] * (sequence_length - len(row)) for row in _filled(fitting, sequence_length)]
    return torch.tensor(rows, dtype=torch.long)  # type: ignore[return-value]


def _unlearnt(token: int) -> int:
    return ~token


def _filled(encoded: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """Pairs one after the other in a row, as long as the next one fits whole."""
    row: list[int] = []
    for tokens in encoded:
        if row and len(row) + len(tokens) > length:
            yield row
            row = []
        row = row + tokens
    yield row


def _encoded(pair: Pair, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that are read, and those of the answer with what ends it."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": pair.instruction}, {"role": "assistant", "content": pair.answer}]
        prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        if not whole.startswith(prompt):  # a template that renders a finished turn otherwise than one to be written
            whole = f"{prompt}{pair.answer}{tokenizer.eos_token or ''}"
        return _divided(prompt, whole, tokenizer, add_special_tokens=False)
    prompt = f"Question: {pair.instruction}\nAnswer:"
    read, learnt = _divided(prompt, f"{prompt} {pair.answer}", tokenizer)
    ends = tokenizer.eos_token_id is not None and learnt[-1:] != [tokenizer.eos_token_id]
    return read, [*learnt, tokenizer.eos_token_id] if ends else learnt


def _divided(prompt: str, whole: str, tokenizer: Any, **options: Any) -> tuple[list[int], list[int]]:
    """The tokens of a whole text, split where it leaves those of its beginning."""
    begun, ids = (list(tokenizer(text, verbose=False, **options)["input_ids"]) for text in (prompt, whole))
    shared = next((at for at, (one, other) in enumerate(zip(begun, ids, strict=False)) if one != other), len(begun))
    return ids[:shared], ids[shared:]
