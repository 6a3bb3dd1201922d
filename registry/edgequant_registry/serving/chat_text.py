"""Between texts and tokens: chats through the tokenizer's template, and the tokens that end an answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from edgequant_registry.serving.messages import Message
from edgequant_registry.serving.refusal import BadRequestError, no_such_token, no_template, refuse_what_cannot_fit
from edgequant_registry.serving.requests import Prompt

_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


class ChatText:
    """A tokenizer that several threads may ask, one after the other: it changes itself while it works.

    Attributes:
        ends: tokens that end an answer: the model's and the tokenizer's, and what the template puts behind one.
    """

    def __init__(self, tokenizer: Any, generation_config: Any) -> None:
        self._tokenizer, self._alone = tokenizer, threading.Lock()
        configured = getattr(generation_config, "eos_token_id", None)
        ends = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
        self.ends = {token for token in [*ends, self._end_of_turn()] if token is not None}
        self.vocabulary = len(tokenizer)
        self._longest_token = max(map(len, tokenizer.get_vocab()))

    def encode(self, prompt: Prompt, context: int | None) -> list[int]:
        """Token ids of a text, with what a sequence begins with; ids stay as they are.

        Raises:
            BadRequestError: longer than a context, or ids that are not the model's.
        """
        if isinstance(prompt, str):
            refuse_what_cannot_fit(len(prompt), self._longest_token, context)
            with self._alone:
                return list(self._tokenizer(prompt).input_ids)
        for token in prompt:
            if not 0 <= token < self.vocabulary:
                raise no_such_token(token, self.vocabulary)
        return list(prompt)

    def of_chat(self, messages: Sequence[Message], context: int | None) -> list[int]:
        """Token ids of a chat up to where the assistant's answer begins.

        Raises:
            BadRequestError: longer than a context, no template, or one that refuses the order of the roles.
        """
        rendered = self._rendered(messages, add_generation_prompt=True)
        refuse_what_cannot_fit(len(rendered), self._longest_token, context)
        return self._ids(rendered)

    def decode(self, tokens: Sequence[int], *, after: Sequence[int]) -> str:
        """The text that tokens add to a sequence, with the space that some tokenizers would drop in front."""
        start = list(after[-1:])
        with self._alone:
            before = self._tokenizer.decode(start, skip_special_tokens=True)
            return str(self._tokenizer.decode([*start, *tokens], skip_special_tokens=True))[len(before) :]

    def _rendered(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        if not self._tokenizer.chat_template:
            raise no_template()
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except TemplateError as error:
            raise BadRequestError(f"the model's chat template refuses these messages: {error}", "messages") from error

    def _ids(self, text: str) -> list[int]:
        with self._alone:
            return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _end_of_turn(self) -> int | None:
        """The special token behind an assistant's words, if there is one: models that were not tuned name another."""
        try:
            rendered = self._rendered(_PROBE)
        except BadRequestError:
            return None
        behind = self._ids(rendered[rendered.rfind("b") + 1 :])
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        return behind[0] if behind and behind[0] in special else None
