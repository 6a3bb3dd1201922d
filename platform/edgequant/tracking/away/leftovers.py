"""What earlier runs of a folder kept, since their server was away when they ended or were killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from edgequant.tracking.addresses import without_password
from edgequant.tracking.away import patience
from edgequant.tracking.away.filing import file_entries
from edgequant.tracking.away.journal import ENTRIES, FOLDER, Journal


def kept_below(folder: Path) -> list[Path]:
    """Folders of entries that wait: of a run, of the runs of a folder, of a working folder's `outputs`."""
    patterns = (f"{'*/' * depth}{FOLDER}/{inner}{ENTRIES}" for depth in range(4) for inner in ("", "*/"))
    return sorted({file.parent.resolve() for pattern in patterns for file in folder.glob(pattern)})


def file_left(folder: Path, uri: str) -> int:
    """File what dead processes kept below a folder for the server at an address; the number of entries.

    Says on stderr what was filed. What a living run keeps, and what is for another server, stays. Where the server
    stays away, the rest waits on.
    """
    filed = 0
    for journal in _free(folder):
        try:
            if journal.store == without_password(uri) and journal.count:
                filed += _file(journal)
        except Exception as error:
            if not patience.is_away(error):
                raise
        finally:
            journal.close()
    return filed


def _free(folder: Path) -> Iterator[Journal]:
    for place in kept_below(folder):
        try:
            yield Journal(place)
        except BlockingIOError:  # of a run that is at work
            continue


def _file(journal: Journal) -> int:
    count = journal.count
    with patience.at_once():
        refused = file_entries(journal, {})
    more = f"; {refused} were refused and are kept there" if refused else ""
    told = f"filed {count:,} entries that an earlier run had kept in {str(journal.folder.parent)!r}{more}"
    print(told, file=sys.stderr, flush=True)
    return count


def still_waiting(folder: Path) -> list[tuple[Path, str]]:
    """(folder of a run, address of its server) of all that waits below a folder and that no living run keeps."""
    found = []
    for journal in _free(folder):
        found += [(journal.folder.parent, journal.store)] if journal.count else []
        journal.close()
    return found
