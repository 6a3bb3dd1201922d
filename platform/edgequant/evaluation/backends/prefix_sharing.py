"""Prompts that begin alike (questions on one paragraph) read their common beginning once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SHORTEST = 32  # tokens; a shorter common beginning saves less than the bookkeeping costs


@dataclass(frozen=True)
class Group:
    """Prompts (by index) whose first `shared` tokens are equal; every prompt has at least one token more."""

    shared: int
    members: tuple[int, ...]


def groups_by_prefix(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Group prompts by a common beginning of at least half of each; a prompt alone shares all but its last token."""
    order = sorted(range(len(prompts)), key=lambda index: tuple(prompts[index]))
    groups: list[Group] = []
    for index in order:
        prompt = prompts[index]
        if groups:
            last = groups[-1]
            common = _common(prompts[last.members[0]], prompt, min(last.shared, len(prompt) - 1))
            if common >= max(_SHORTEST, len(prompt) // 2):
                groups[-1] = Group(common, (*last.members, index))
                continue
        groups.append(Group(len(prompt) - 1, (index,)))
    return groups


def worth_sharing(prompts: Sequence[Sequence[int]], groups: Sequence[Group]) -> bool:
    """Whether sharing spares a quarter of the tokens to read."""
    total = sum(map(len, prompts))
    spared = sum(group.shared * (len(group.members) - 1) for group in groups)
    return 4 * spared >= total


def batches_of_groups(
    prompts: Sequence[Sequence[int]], groups: Sequence[Group], max_new_tokens: int, max_tokens: int
) -> Iterator[list[Group]]:
    """Groups of similar length in batches whose padded prompts and answers stay within `max_tokens`, longest first.

    A group that is too large alone is cut into several.
    """
    fitting = [part for group in groups for part in _cut(group, prompts, max_new_tokens, max_tokens)]
    fitting.sort(key=lambda group: (-group.shared, group.members))
    batch: list[Group] = []
    for group in fitting:
        rows = sum(len(other.members) for other in (*batch, group))
        longest = max(other.shared for other in (*batch, group))
        suffix = max(len(prompts[index]) - other.shared for other in (*batch, group) for index in other.members)
        if batch and rows * (longest + suffix + max_new_tokens) > max_tokens:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _cut(group: Group, prompts: Sequence[Sequence[int]], max_new_tokens: int, max_tokens: int) -> list[Group]:
    longest = max(len(prompts[index]) for index in group.members) + max_new_tokens
    size = max(1, max_tokens // longest)
    return [Group(group.shared, group.members[at : at + size]) for at in range(0, len(group.members), size)]


def _common(left: Sequence[int], right: Sequence[int], at_most: int) -> int:
    for position in range(at_most):
        if left[position] != right[position]:
            return position
    return at_most
