"""A model's aliases and their history: read as they are, settled after a kill, moved with an entry written before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgequant import tracking
from edgequant_registry.aliases.claims import Claim, now
from edgequant_registry.aliases.history import (
    Entry,
    carriers,
    moved_by_others,
    new_entry,
    read_history,
    settled,
    stints,
)
from edgequant_registry.records import mark_promoted, mark_rolled_back

CHAMPION, CHALLENGER = "champion", "challenger"


def previous(alias: str) -> str:
    """Alias of the version that carried `alias` before."""
    return f"previous_{alias}"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A registered model's aliases and what led there.

    Attributes:
        aliases: versions by alias.
        existing: versions that are there.
        entries: of the history, unfinished ones as what came of them, and what somebody else moved.
        unwritten: those of them that are not filed so.
        unreadable: tags of the history that cannot be read.
    """

    name: str
    aliases: dict[str, str]
    existing: frozenset[str]
    entries: list[Entry]
    unwritten: list[Entry]
    unreadable: list[str]

    def line(self, alias: str) -> list[Entry]:
        """Entries of the versions that carried an alias, the present one last."""
        return carriers(self.entries, alias, self.existing)


def standing(name: str, *aliases: str) -> Standing:
    """How a model's aliases stand; nothing is written.

    Args:
        aliases: of which to find out too whether somebody else moved them; those of the history always.
    """
    model = tracking.client().get_registered_model(name)
    carried = {alias: str(version) for alias, version in dict(model.aliases).items()}
    filed, unreadable = read_history(dict(model.tags))
    entries = settled(filed, carried)
    for alias in sorted({*aliases, *(entry.alias for entry in filed)} - {CHALLENGER}):
        entries += moved_by_others(entries, alias, carried.get(alias), carried.get(previous(alias)), now())
    versions = tracking.client().search_model_versions(f"name = '{name}'")
    return Standing(
        name=name,
        aliases=carried,
        existing=frozenset(str(one.version) for one in versions),
        entries=entries,
        unwritten=[entry for entry in entries if entry not in filed],
        unreadable=unreadable,
    )


def settle(claim: Claim, *aliases: str) -> Standing:
    """Finish or give up what a killed process had begun, and write down what somebody else moved."""
    found = standing(claim.name, *aliases)
    for entry in found.unwritten:
        if entry.state == "done" and entry.action != "moved":
            _finish(claim, found, entry)
        else:
            _write(claim, entry)
    return standing(claim.name, *aliases) if found.unwritten else found


def move(claim: Claim, found: Standing, **values: Any) -> Entry:
    """Give an alias to a version, and write down why: the entry first, the alias next, what follows from it last."""
    entry = new_entry(found.entries, at=now(), **values)
    _write(claim, entry)
    claim.registry().set_registered_model_alias(claim.name, entry.alias, str(entry.version))
    done = replace(entry, state="done")
    carried = {**found.aliases, entry.alias: str(entry.version)}
    _finish(claim, replace(found, aliases=carried, entries=[*found.entries, done]), done)
    return done


def _write(claim: Claim, entry: Entry) -> None:
    claim.registry().set_registered_model_tag(claim.name, entry.key, entry.to_json())


def _finish(claim: Claim, found: Standing, entry: Entry) -> None:
    """What follows from an alias that has moved; done twice, it comes to the same."""
    if entry.alias != CHALLENGER:
        _keep_previous(claim, found, entry.alias)
    if entry.alias == CHAMPION and found.aliases.get(CHALLENGER) == entry.version:
        claim.registry().delete_registered_model_alias(claim.name, CHALLENGER)
    for version in _lost(found.entries, entry) & found.existing:
        mark_rolled_back(claim, version, entry)
    mark_promoted(claim, entry)
    _write(claim, entry)


def _keep_previous(claim: Claim, found: Standing, alias: str) -> None:
    line, name = found.line(alias), previous(alias)
    wanted = line[-2].version if len(line) > 1 else None
    if wanted is None and name in found.aliases:
        claim.registry().delete_registered_model_alias(claim.name, name)
    elif wanted is not None and found.aliases.get(name) != wanted:
        claim.registry().set_registered_model_alias(claim.name, name, wanted)


def rolled_back(name: str, alias: str) -> set[str]:
    """Versions that a rollback took an alias from and that nobody has given it again since."""
    found: set[str] = set()
    entries = standing(name, alias).entries
    for place, entry in enumerate(entries):
        if entry.alias == alias and entry.state == "done":
            found = (found | _lost(entries[: place + 1], entry)) - {str(entry.version)}
    return found


def _lost(entries: Sequence[Entry], rollback: Entry) -> set[str]:
    """Versions that a rollback took the alias from."""
    if rollback.resumes is None:
        return set()
    before = stints([entry for entry in entries if entry.number < rollback.number], rollback.alias)
    numbers = [stint.number for stint in before]
    behind = numbers.index(rollback.resumes) + 1 if rollback.resumes in numbers else len(before) - 1
    return {stint.version for stint in before[behind:] if stint.version} - {str(rollback.version)}
