"""Who carried an alias, when, why and by which policy: entries that are only added, as tags of the registered model.

An entry is also the journal of its change: it is written before the alias moves (`begun`) and finished behind the last
write (`done`). One that was never finished counts as done where the alias points to its version, and as `abandoned`
where it does not.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal
from uuid import uuid4

PREFIX = "edgequant.history."
WHY_LENGTH = 2000  # of the 5,000 characters that a tag holds
HEADINGS = {
    "promoted": "promoted",
    "rolled back": "rolled back to",
    "challenger": "challenger",
    "moved": "moved by hand",
}
State = Literal["begun", "done", "abandoned"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One change of an alias.

    Attributes:
        number: in order; another writer's entry of the same number has another key.
        action: promoted, rolled back, challenger, or moved: by somebody else, or before there was a history.
        version: that carries the alias from then on; None: none does.
        before: that carried it until then.
        at: UTC.
        run: of the workflow that did it.
        policy: name@digest.
        resumes: number of the entry that a rollback goes back to.
    """

    number: int
    alias: str
    action: Literal["promoted", "rolled back", "challenger", "moved"]
    version: str | None
    before: str | None
    at: str
    run: str = ""
    policy: str = ""
    why: str = ""
    resumes: int | None = None
    state: State = "begun"
    token: str = ""

    @property
    def key(self) -> str:
        """Of its tag: two writers never write the same one."""
        return f"{PREFIX}{self.number:06d}.{self.token}"

    def to_json(self) -> str:
        told = asdict(replace(self, why=self.why[:WHY_LENGTH]))
        return json.dumps({key: value for key, value in told.items() if key != "token"})


def new_entry(entries: Sequence[Entry], **values: Any) -> Entry:
    """One behind all others."""
    return Entry(number=1 + max((entry.number for entry in entries), default=0), token=uuid4().hex[:8], **values)


def read_history(tags: Mapping[str, str]) -> tuple[list[Entry], list[str]]:
    """Entries in order, and the keys of those that cannot be read."""
    entries, unreadable = [], []
    for key, text in tags.items():
        if key.startswith(PREFIX):
            try:
                entries.append(_entry(key, text))
            except (ValueError, TypeError):
                unreadable.append(key)
    return sorted(entries, key=lambda entry: (entry.number, entry.at, entry.token)), sorted(unreadable)


def _entry(key: str, text: str) -> Entry:
    number, _, token = key.removeprefix(PREFIX).partition(".")
    found = json.loads(text)
    known = {item.name for item in fields(Entry)} - {"number", "token"}
    values = {name: value for name, value in found.items() if name in known}
    if values.get("state") not in ("begun", "done", "abandoned") or values.get("action") not in HEADINGS:
        raise ValueError(key)
    return Entry(number=int(number), token=token, **values)


def settled(entries: Sequence[Entry], aliases: Mapping[str, str]) -> list[Entry]:
    """With every unfinished entry as what came of it."""
    return [
        entry
        if entry.state != "begun"
        else replace(entry, state="done" if aliases.get(entry.alias) == entry.version else "abandoned")
        for entry in entries
    ]


def moved_by_others(
    entries: Sequence[Entry], alias: str, carries: str | None, previous: str | None, at: str
) -> list[Entry]:
    """Entries for what the history does not know: the alias stands elsewhere than it says.

    Args:
        carries: version with the alias.
        previous: version with the alias of the one before, where there is no history yet.
    """
    line = stints(entries, alias)
    known = line[-1].version if line else None
    if known == carries:
        return []
    values = {"alias": alias, "action": "moved", "at": at, "state": "done"}
    if line or previous is None or previous == carries:
        why = "somebody else moved the alias" if line else "it carried the alias before there was a history"
        return [new_entry(entries, version=carries, before=known, why=why, **values)]
    why = "it carried the alias before there was a history"
    first = new_entry(entries, version=previous, before=None, why=why, **values)
    return [first, new_entry([*entries, first], version=carries, before=previous, why=why, **values)]


def stints(entries: Sequence[Entry], alias: str) -> list[Entry]:
    """The entries that made versions carriers of an alias, without those that were rolled back; the last one stands."""
    line: list[Entry] = []
    for entry in entries:
        if entry.alias != alias or entry.state != "done":
            continue
        if entry.resumes is None:
            line.append(entry)
            continue
        numbers = [stint.number for stint in line]
        if entry.resumes in numbers:
            del line[numbers.index(entry.resumes) + 1 :]
        else:  # its entry cannot be read any more
            line.append(entry)
    return line


def carriers(entries: Sequence[Entry], alias: str, existing: Collection[str]) -> list[Entry]:
    """As `stints`, of versions that are still there; one that stands twice in a row once."""
    line: list[Entry] = []
    for stint in stints(entries, alias):
        if stint.version in existing:
            if line and line[-1].version == stint.version:
                line.pop()
            line.append(stint)
    return line


def history_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For people, oldest first: `until` is when the alias moved on, or a challenger became champion."""
    rows = []
    for place, entry in enumerate(entries):
        following = next((other for other in entries[place + 1 :] if _ends(entry, other)), None)
        rows.append(
            {
                "alias": entry.alias,
                "version": "none" if entry.version is None else entry.version,
                "how": HEADINGS[entry.action] if entry.state == "done" else f"{entry.state}: nothing moved",
                "since": entry.at,
                "until": "" if following is None else following.at,
                "policy": entry.policy,
                "why": entry.why,
                "run": entry.run,
            }
        )
    return rows


def _ends(entry: Entry, later: Entry) -> bool:
    became_champion = entry.action == "challenger" and later.action == "promoted" and later.version == entry.version
    return entry.state == later.state == "done" and (later.alias == entry.alias or became_champion)
