"""The campaign: how many tries of which kind, each with its own draw of a seed, what is prepared for them once."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from faults import disks, entry_points, forking, peers, servers, tampering
from faults.entry_points import ENTRY_POINTS, EntryPoint
from faults.interruptions import killed, signalled
from faults.outcome import Reference, judge, reference
from faults.places import Place, leave_files, runs_of
from faults.races import raced
from faults.records import Records

FIRST = (
    "edgequant.__main__",
    "torch",
    "transformers",
    "mlflow",
    "edgequant.workflows.qat",
    "edgequant_registry.workflow",
)
ANEW_EACH = 25  # every so many kills, one of a process of its own, imports and all
SIGNALS_ANEW_EACH = 6
RAYS, RAY_FOLDERS = Path("/tmp"), "eq-*"  # where `tune` has Ray keep its sockets and logs
KEPT = 30  # places of tries that lost something
FILLED = {name: 1 for name in ENTRY_POINTS if name != "tune"}
MOMENTS = {"signals": {name: 2 if name == "tune" else 6 for name in ENTRY_POINTS}}
ALL = {
    "kills": 330,
    "signals": 66,
    "disks": 20,
    "servers": len(servers.FAULTS),
    "races": 24,
    "tampered": 110,
    "peers": 32,
}
SHORT = {
    "kills": ("evaluate",),
    "signals": ("evaluate",),
    "disks": ("export",),
    "servers": ("503 for 5 s",),
    "races": ("promote",),
    "tampered": ("checkpoint",),
}


class Campaign:
    """Tries in a folder, which keeps templates, records and the places of tries that lost something."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.records = Records(folder / f"tries-{seed}.jsonl")
        self.place = Place(folder / "place")
        self.references: dict[str, Reference] = {}
        self.wholes: dict[str, dict[str, Any]] = {}  # what peers leave undisturbed
        self.grown: dict[str, int] = {}  # bytes, by entry point

    def prepare(self) -> None:
        """Import everything, make the templates."""
        modules = self.folder / "modules.txt"
        forking.prepare(FIRST)
        if not modules.is_file():
            shutil.rmtree(self.folder / "templates", ignore_errors=True)
        os.environ[forking.MODULES] = str(modules)
        self.templates = entry_points.make_templates(self.place, self.folder / "templates")
        del os.environ[forking.MODULES]
        forking.prepare(modules.read_text().split())

    def run(self, kind: str, tries: int, names: list[str] | None, *, mounted: bool = False) -> None:
        """All tries of a kind that were not made yet."""
        if kind == "disks" and not mounted:
            self._in_a_namespace(tries, names)
            return
        shares, tried = self._kind(kind)
        chosen = {name: share for name, share in shares.items() if names is None or name in names}
        numbered = [(name, number) for name, count in shared(tries, chosen).items() for number in range(count)]
        todo = [(name, number) for name, number in numbered if not self.records.has(kind, name, number)]
        with self._around(kind, todo):
            for name, number in todo:
                draw, mark = Random(f"{self.seed} {kind} {name} {number}"), f"{kind}-{number}"
                try:
                    found = tried(name, number, draw, mark)
                except (AssertionError, LookupError, RuntimeError, OSError, sqlite3.Error) as error:
                    found = {"lost": [f"the try itself failed: {type(error).__name__}: {error}"], "litter": []}
                self._record(kind, name, number, found)

    def _kind(self, kind: str) -> tuple[Mapping[str, int], Callable[[str, int, Random, str], dict[str, Any]]]:
        return {
            "kills": ({name: entry.kills for name, entry in ENTRY_POINTS.items()}, self._killed),
            "signals": (MOMENTS["signals"], self._signalled),
            "disks": (FILLED, self._filled),
            "servers": (dict.fromkeys(servers.FAULTS, 1), self._unserved),
            "races": ({"promote": 1}, self._raced),
            "tampered": (dict.fromkeys(tampering.TARGETS, 1), self._tampered),
            "peers": (dict.fromkeys(peers.SCRIPTS, 1), self._peers),
        }[kind]  # type: ignore[return-value]

    def _record(self, kind: str, name: str, number: int, found: dict[str, Any]) -> None:
        """Write a try down, and keep its place where it lost something."""
        self.records.add(kind, name, number, found)
        kept = self.folder / "lost"
        if found["lost"] and len([*kept.glob("*")]) < KEPT:
            folder = kept / f"{kind}-{name.replace(' ', '-')}-{number}"
            shutil.copytree(self.place.root, folder, symlinks=True, dirs_exist_ok=True)
            for said in self.folder.glob("place-*"):
                shutil.copy(said, folder)

    def _entry(self, name: str) -> tuple[EntryPoint, Place, Path, Reference]:
        """An entry point, where it is tried, its template, and what it leaves undisturbed."""
        entry = ENTRY_POINTS[name]
        template = self.templates[entry.template]
        if name not in self.references:
            self.references[name] = reference(entry, self.place, template)
        return entry, self.place, template, self.references[name]

    # ------------------------------------------------------------------------------------------------------ the kinds

    def _killed(self, name: str, number: int, draw: Random, mark: str) -> dict[str, Any]:
        return self._interrupted(killed, name, draw, mark, number % ANEW_EACH == ANEW_EACH - 1)

    def _signalled(self, name: str, number: int, draw: Random, mark: str) -> dict[str, Any]:
        return self._interrupted(signalled, name, draw, mark, number % SIGNALS_ANEW_EACH == SIGNALS_ANEW_EACH - 1)

    def _interrupted(
        self, interrupt: Callable[..., dict[str, Any]], name: str, draw: Random, mark: str, anew: bool
    ) -> dict[str, Any]:
        given = self._entry(name)
        before = {*RAYS.glob(RAY_FOLDERS)}
        found = interrupt(*given, draw, mark, anew or name == "tune")
        left = {*RAYS.glob(RAY_FOLDERS)} - before if name == "tune" else {}
        return found | {"litter": [*found["litter"], *(f"Ray's folder {folder}" for folder in left)]}

    def _raced(self, name: str, number: int, draw: Random, mark: str) -> dict[str, Any]:
        _, place, template, known = self._entry(name)
        return raced(place, template, known.seconds, draw, mark)

    def _in_a_namespace(self, tries: int, names: list[str] | None) -> None:
        """Full disks need a mount, which only a fork of this process sees."""
        pid = os.fork()
        if pid == 0:
            try:
                if disks.may_mount():
                    self.run("disks", tries, names, mounted=True)
                else:
                    print("full disks left out: this user may not mount", flush=True)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        self.records.read()

    def _filled(self, name: str, number: int, draw: Random, mark: str) -> dict[str, Any]:
        if not os.path.ismount(self.place.root):
            disks.mount(self.place.root)
        entry, place, template, known = self._entry(name)
        if name not in self.grown:
            place.like(template)
            before = disks.used(place.root)
            place.run(entry.command(), mark)
            self.grown[name] = disks.used(place.root) - before
        return disks.filled(entry, place, template, known, self.grown[name], draw, mark)

    @contextlib.contextmanager
    def _around(self, kind: str, todo: list[tuple[str, int]]) -> Any:
        """A server for those tries that ask for one."""
        if kind != "servers" or not any(servers.FAULTS[name].mode not in ("locked", "new") for name, _ in todo):
            yield
            return
        with servers.server(self.folder / "server", self.templates["fresh"] / "work" / "mlflow.db") as self.server:
            yield

    def _unserved(self, name: str, number: int, draw: Random, mark: str) -> dict[str, Any]:
        entry, place, template, known = self._entry("qat")
        mode = servers.FAULTS[name].mode
        if mode == "locked":
            return servers.locked(name, entry, place, template, known, draw, mark)
        if mode == "new":
            return servers.first_at_once(entry, place, template, draw, mark)
        return servers.unserved(name, entry, place, template, known, self.server, draw, mark)

    def _tampered(self, name: str, number: int, draw: Random, mark: str) -> dict[str, Any]:
        if name == "training checkpoint":
            return self._training_tampered(draw, mark)
        template, whole = self._untouched(name)
        return tampering.tampered(name, self.place, lambda: self.place.like(template), draw, mark, whole)

    def _peers(self, name: str, number: int, draw: Random, mark: str) -> dict[str, Any]:
        whole = self.wholes.setdefault(name, {})
        return peers.tried(name, self.place, self.templates["fresh"], draw, mark, whole)

    def _untouched(self, name: str) -> tuple[Path, list[dict[str, float]]]:
        """A template in which everything has been read once, and the figures that this gave."""
        template = self.templates["made"]
        if name == "cached scores":
            template = self.folder / "templates" / "scored"
            if not template.is_dir():
                self.place.like(self.templates["made"]).run(tampering.TARGETS[name].command.split(), "template")
                shutil.copytree(self.place.root, template, symlinks=True)
        known = {run.id for run in runs_of(template / "work" / "mlflow.db")}
        ended = self.place.like(template).run(tampering.TARGETS[name].command.split(), "template")
        assert ended.status == 0, ended.said
        return template, [run.metrics for run in runs_of(self.place.database, but=known)]

    def _training_tampered(self, draw: Random, mark: str) -> dict[str, Any]:
        """A checkpoint of a training that was killed: passed over or refused by name, and the result is the same."""
        entry, place, template, known = self._entry("qat")
        place.like(template)
        theirs = leave_files(place)
        target, child = tampering.TARGETS["training checkpoint"], place.begin(entry.command(), mark)
        until = time.monotonic() + 60
        while not [*place.root.glob(f"{target.folder}/trainer_state.json")] and child.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.002)
        child.end()
        file, way = tampering.chosen(place, target, draw), draw.choice(target.ways)
        tampering.tamper(file, way, draw)
        before = runs_of(place.database, but=known.earlier)
        ended = place.run(entry.command(again=True), mark)
        about = {"file": str(file.relative_to(place.root)), "way": way}
        if ended.status == 2 and file.name in ended.said and "Traceback" not in ended.said:
            return about | {"lost": [], "litter": []}
        found = judge(entry, place, known, theirs, before, ended)
        return about | {"lost": [f"{file.name} {way}: {line}" for line in found.lost], "litter": []}


def shared(tries: int, shares: Mapping[str, int]) -> dict[str, int]:
    """Tries in proportion to shares, one at least of each while there are so many."""
    total, left, found = sum(shares.values()), tries, {}
    for name, share in shares.items():
        found[name] = min(max(1, round(tries * share / total)), left)
        left -= found[name]
    return found
