"""Text in and out by a tokenizer of transformers, the same for all that runs a model with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.backends.language_model import Choice


class WithTokenizer:
    """The part of `LanguageModel` that turns texts into tokens and back."""

    tokenizer: Any
    bos: int | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        prefix = [] if self.bos is None else [self.bos]
        ids = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        # A chat template writes BOS itself.
        return [list(row) if row[:1] == prefix else prefix + list(row) for row in ids]

    def encode_choices(self, contexts: Sequence[str], continuations: Sequence[str]) -> list[Choice]:
        # Trailing white space belongs to the continuation, or the split falls inside a token.
        bare = [context.rstrip() for context in contexts]
        wholes = [context + continuation for context in contexts for continuation in continuations]
        encoded = self.encode(bare + wholes)
        starts, ends = encoded[: len(bare)], iter(encoded[len(bare) :])
        return [Choice(tuple(start), tuple(tuple(next(ends)[len(start) :]) for _ in continuations)) for start in starts]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def render_chat(self, question: str) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template; leave chat_template off for a base model")
        turn = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def bos_token(tokenizer: Any, model_type: str, bos: str) -> int | None:
    """The token that every sequence begins with: `auto`, `always` or `never`. See `TransformersModel`.

    Raises:
        UserError: BOS is asked for and the tokenizer has none.
    """
    token = tokenizer.bos_token_id
    if bos == "never":
        return None
    if bos == "always" and token is None:
        raise UserError("bos=always, but the tokenizer has no BOS token; use bos=auto or bos=never")
    if token is None or bos == "always":
        return token
    adds_it = tokenizer("a")["input_ids"][:1] == [token]
    return token if adds_it or model_type.startswith("gemma") else None
