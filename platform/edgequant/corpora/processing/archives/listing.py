"""What an archive holds, and what of it is left out, under the limits of the settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import printable

NAMED = 3  # of the members that are left out for one reason
SMALL = 10_000_000  # bytes that may come of however few
MB = 1e6

Place = tuple[int, int]
"""Where a member is: what its archive makes of the two numbers."""


@dataclass
class Listing:
    """Members to read, in the archive's order.

    Args:
        size: bytes of the archive's file.

    Attributes:
        members: (name on one line, place) of each.
        left_out: reason to the names that it holds for.
        end: why nothing behind the last member was listed.
    """

    settings: CorpusSettings
    size: int
    members: list[tuple[str, Place]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    end: str = ""
    _unpacked: int = 0
    _seen: int = 0
    _names: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, place: Place, *, unpacked: int, packed: int | None, refused: str = "") -> bool:
        """Take a member or leave it out; whether to go on with the next.

        Args:
            unpacked: its bytes, as the archive states them.
            packed: what they are in the archive; None where they are packed with those of other members.
            refused: why the kind of archive has it left out.
        """
        self._seen += 1
        if self._seen > self.settings.archive_members:
            self.end = f"more than archive_members {self.settings.archive_members:,}"
        elif self._unpacked + unpacked > self.settings.archive_megabytes * MB:
            self.end = f"unpacks to more than archive_megabytes {self.settings.archive_megabytes:g} (bomb?)"
        elif packed is None and self._explodes(self._unpacked + unpacked, self.size):
            self.end = f"unpacks to more than archive_ratio {self.settings.archive_ratio:g} times its size (bomb?)"
        if self.end:
            return False
        if reason := refused or _leaves(name) or self._too_large(unpacked, packed):
            self.left_out.setdefault(reason, []).append(printable(name))
            return True
        self._unpacked += unpacked
        if not PurePosixPath(name).name.startswith("."):
            self.members.append((self._own_name(printable(name)), place))
        return True

    def said(self) -> str:
        """One line: how many were left out and why; empty where nothing was."""
        count = sum(map(len, self.left_out.values()))
        parts = [f"{len(names):,}: {reason} ({_some(names)})" for reason, names in self.left_out.items()]
        lines = [f"{count:,} members not read: {'; '.join(parts)}"] if count else []
        if self.end:
            lines.append(f"nothing behind its first {self._seen - 1:,} members read: {self.end}")
        return "; ".join(lines)

    def _too_large(self, unpacked: int, packed: int | None) -> str:
        if unpacked > self.settings.file_megabytes * MB:
            return f"unpacks to more than file_megabytes {self.settings.file_megabytes:g} (bomb?)"
        if packed is not None and self._explodes(unpacked, packed):
            return f"unpacks to more than archive_ratio {self.settings.archive_ratio:g} times its size (bomb?)"
        return ""

    def _explodes(self, unpacked: int, packed: int) -> bool:
        return unpacked > SMALL and unpacked > self.settings.archive_ratio * packed

    def _own_name(self, name: str) -> str:
        """An archive may hold the same name twice; rows and tables tell files by their names."""
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name} ({self._names[name]})"


def _leaves(name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    outside = ".." in parts or name.startswith(("/", "\\")) or (parts and ":" in parts[0])
    return "path leaves the archive; not opened" if outside else ""


def _some(names: list[str]) -> str:
    shown = [name if len(name) <= 60 else f"{name[:57]}..." for name in names[:NAMED]]
    return ", ".join([*shown, "..."] if len(names) > NAMED else shown)
