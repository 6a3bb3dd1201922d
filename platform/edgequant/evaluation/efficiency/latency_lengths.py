"""How long the prompts and answers are that are timed, within a model's context. Light: settings are checked by it."""

from __future__ import annotations

from typing import NamedTuple

from edgequant.errors import UserError

PROMPTS, PROMPTS_ON_GPU = (128,), (512, 128)
NEW_TOKENS, NEW_TOKENS_ON_GPU = 32, 128


class Lengths(NamedTuple):
    """In tokens."""

    prompts: tuple[int, ...]
    new: int

    @property
    def longest(self) -> int:
        """A prompt with its answer."""
        return max(self.prompts) + self.new

    def check(self, context: int) -> None:
        """Refuse what is longer than a context.

        Raises:
            UserError: names both.
        """
        if self.longest > context:
            raise UserError(
                f"latency needs {self.longest} tokens of context (prompt {max(self.prompts)} + {self.new} new), the "
                f"model has {context}; set shorter evaluation.latency_prompt_lengths or evaluation.latency_new_tokens"
            )


def wanted_lengths(prompts: tuple[int, ...] | None, new_tokens: int | None, *, on_gpu: bool) -> Lengths:
    """What was asked for, with what is left open filled in for the device."""
    return Lengths(
        prompts or (PROMPTS_ON_GPU if on_gpu else PROMPTS), new_tokens or (NEW_TOKENS_ON_GPU if on_gpu else NEW_TOKENS)
    )


def fitting_lengths(
    prompts: tuple[int, ...] | None, new_tokens: int | None, context: int, *, on_gpu: bool = False
) -> Lengths:
    """What is timed: what was asked for, its default lengths shortened where the context is too short for them.

    Lengths that are a default's count as not asked for, since workflows hand them on. New tokens take at most a quarter
    of a context that is too short, or what prompts of other lengths leave; default prompts take the rest.
    """
    lengths = wanted_lengths(prompts, new_tokens, on_gpu=on_gpu)
    if lengths.longest <= context:
        return lengths
    free_prompts, new = lengths.prompts in (PROMPTS, PROMPTS_ON_GPU), lengths.new
    if new in (NEW_TOKENS, NEW_TOKENS_ON_GPU):
        new = max(1, min(new, context // 4 if free_prompts else context - max(lengths.prompts)))
    if not free_prompts:
        return Lengths(lengths.prompts, new)
    rest = max(1, context - new)
    return Lengths(tuple(dict.fromkeys(min(length, rest) for length in lengths.prompts)), new)
