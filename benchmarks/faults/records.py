"""Tries as they were recorded, a line each; counted; and as the table of docs/reliability.md."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ROOT / "benchmarks" / "faults" / "counts.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- campaign -->", "<!-- end of campaign -->"
KINDS = {
    "kills": "kill -9 at a random moment, once or twice, alone or with all it started; the command given again",
    "signals": "SIGINT, SIGTERM or SIGHUP at a random moment; the command given again",
    "disks": "the disk fills up at a random moment; room made, the command given again",
    "servers": "the tracking server cut off, answering 503, hanging, gone for good; the store locked, or new",
    "races": "two promotions at once, a third of them with one killed",
    "tampered": "a byte flipped, the end cut off, a file removed or added, then a command that reads it",
    "peers": "kill -9 (of MLflow, signals too) at a random moment to a script without edgequant; run again",
}
PEERS = "peers"
BY_ENTRY_POINT = ["kills", "signals", "disks"]
MEANING = (
    "Survived: the command, given again (with `--resume true` where it takes that), ends with 0 and leaves every file "
    "and every metric byte for byte as two undisturbed runs left them alike; no run is RUNNING or was begun twice, the "
    "store is sound, and files of a user's own, in and around the output, are what they were."
)
Counts = dict[str, dict[str, list[int]]]
EVERY = 10  # tries between lines of progress


class Records:
    """A file of tries: what is in it already is not tried again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.started = time.monotonic()
        self.read()
        self.before = len(self.all)

    def read(self) -> None:
        """What the file has by now."""
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self.all: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]

    def has(self, kind: str, name: str, number: int) -> bool:
        """Whether this try was made."""
        return any((one["kind"], one["name"], one["number"]) == (kind, name, number) for one in self.all)

    def add(self, kind: str, name: str, number: int, found: dict[str, Any]) -> None:
        """Write a try down; a line of progress after every ten, and for each that lost something."""
        one = {"kind": kind, "name": name, "number": number, **found}
        self.all.append(one)
        with self.file.open("a") as lines:
            lines.write(json.dumps(one) + "\n")
        if one["lost"]:
            print(f"lost: {kind} {name} {number}: {'; '.join(one['lost'])[:400]}", flush=True)
        if (len(self.all) - self.before) % EVERY == 0:
            self.tell()

    def tell(self) -> None:
        """One line: how many, how many lost, how long."""
        lost, littered = (sum(bool(one[key]) for one in self.all) for key in ("lost", "litter"))
        made = len(self.all) - self.before
        each = (time.monotonic() - self.started) / max(1, made)
        print(f"{len(self.all)} tried, {lost} lost something, {littered} left something; {each:.1f} s each", flush=True)


def recorded_below(folder: Path) -> list[dict[str, Any]]:
    """Tries of all campaigns in a folder, in the order of their kinds."""
    found = [one for file in sorted(folder.rglob("tries-*.jsonl")) for one in Records(file).all]
    return sorted(found, key=lambda one: [*KINDS].index(one["kind"]))


def counted(tries: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """[tried, survived, lost, left something lying about] by kind and by what was tried."""
    found: dict[str, dict[str, list[int]]] = {}
    for one in tries:
        counts = found.setdefault(one["kind"], {}).setdefault(one["name"], [0, 0, 0, 0])
        counts[0] += 1
        counts[2 if one["lost"] else 1] += 1
        counts[3] += bool(one["litter"])
    return found


def write_counts(tries: list[dict[str, Any]], command: str) -> None:
    """benchmarks/faults/counts.json, of which the document's section is made."""
    about = {
        "command": command, "date": time.strftime("%d %B %Y"), "machine": _machine(),
        "counts": counted(tries), "lost": _told(tries, peers=False), "lost_by_peers": _told(tries, peers=True),
    }  # fmt: skip
    COUNTS.write_text(json.dumps(about, indent=1) + "\n")


def _told(tries: list[dict[str, Any]], *, peers: bool) -> list[str]:
    """What was lost, each kind of loss once, without the places of tries."""
    chosen = [one for one in tries if (one["kind"] == PEERS) == peers]
    told = {f"{one['kind']}, {one['name']}: {line}" for one in chosen for line in one["lost"]}
    return sorted({re.sub(r"[\w./-]*/place/", "", line) for line in told})


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores, {platform.system()}, Python {platform.python_version()}"


def section() -> str:
    """The document's part between its marks."""
    about = json.loads(COUNTS.read_text())
    counts: Counts = about["counts"]
    lines = [BEGIN, "", "## Interruptions", ""]
    lines += [f"`{about['command']}` on {about['machine']}, {about['date']}. {MEANING}", ""]
    lines += [*_matrix(counts, [kind for kind in counts if kind in BY_ENTRY_POINT]), ""]
    lines += [*_rows(counts, [kind for kind in counts if kind not in [*BY_ENTRY_POINT, PEERS]]), ""]
    lines += ["Lost:", "", *(f"* {line}" for line in about["lost"])] if about["lost"] else ["Nothing was lost."]
    if PEERS in counts:
        lines += [
            "",
            "### Others, alone",
            "",
            *_rows(counts, [PEERS]),
            "",
            *(f"* {line}" for line in about["lost_by_peers"]),
        ]
    return "\n".join([*lines, "", END])


def _matrix(counts: Counts, kinds: list[str]) -> list[str]:
    """Entry points and what was done to each of them: tried, survived, lost."""
    lines = [f"* {kind}: {KINDS[kind]}" for kind in kinds]
    lines += ["", f"| entry point | {' | '.join(f'{kind}: tried | survived | lost' for kind in kinds)} |"]
    lines += [f"|---|{'---|' * 3 * len(kinds)}"]
    names = list(dict.fromkeys(name for kind in kinds for name in counts[kind]))
    for name in names:
        cells = [str(number) for kind in kinds for number in counts[kind].get(name, [0, 0, 0])[:3]]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return [*lines, f"| all | {' | '.join(str(number) for kind in kinds for number in _total(counts[kind]))} |"]


def _rows(counts: Counts, kinds: list[str]) -> list[str]:
    lines = [f"* {kind}: {KINDS[kind]}" for kind in kinds]
    lines += ["", "| what is done | tried | survived | lost |", "|---|---|---|---|"]
    for kind in kinds:
        lines += [f"| {kind}: {name} | {' | '.join(map(str, row[:3]))} |" for name, row in counts[kind].items()]
        lines.append(f"| all {kind} | {' | '.join(map(str, _total(counts[kind])))} |")
    return lines


def _total(rows: dict[str, list[int]]) -> list[int]:
    return [sum(row[place] for row in rows.values()) for place in range(3)]


def write_document() -> None:
    """Put the section into docs/reliability.md, at its marks or at the end."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before.rstrip()}\n\n{section()}{rest.partition(END)[2] or chr(10)}")
