"""A fault campaign: commands are killed, signalled, starved of disk, server and store, raced and lied to; what is lost?

    python benchmarks/fault_campaign.py --keep FOLDER                       # all of it: hundreds of tries
    python benchmarks/fault_campaign.py --keep FOLDER --kinds kills,signals --tries 20 --seed 3
    python benchmarks/fault_campaign.py --keep FOLDER --short                # one of each kind
    python benchmarks/fault_campaign.py --keep FOLDER --count                # no try: counts and table from FOLDER

Nothing is lost where the command, given again (`--resume true`, where it takes that), ends with 0 and leaves every file
and every metric as two undisturbed runs left them alike, byte for byte; where no run is RUNNING, none begun twice, the
store sound, and a user's own files around the output are what they were. Tries are seeded, recorded in FOLDER as they
are made, and not made again. They are forks of this process, which has imported everything, but for searches (Ray) and
a share of the kills. Campaigns of other kinds may run side by side in FOLDER/a and FOLDER/b; `--keep FOLDER --count`
counts both. Linux, as root or with user namespaces for full disks.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("platform", "tune", "registry")]

from faults.campaign import ALL, SHORT, Campaign  # noqa: E402
from faults.records import KINDS, PEERS, recorded_below, write_counts, write_document  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, help="folder of places, records and what was lost")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--names", default=None, help="entry points alone, separated by commas")
    parser.add_argument("--tries", type=int, default=None, help="of each kind (default: as many as the table has)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="one of each kind")
    parser.add_argument(
        "--count", action="store_true", help="write counts.json and docs/reliability.md from the records"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # servers are ended on the way
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.count:
        write_counts(recorded_below(options.keep), "python benchmarks/fault_campaign.py --keep FOLDER")
        write_document()
        return 0
    campaign = Campaign(options.keep.resolve(), options.seed)
    campaign.prepare()
    names = None if options.names is None else options.names.split(",")
    for kind in SHORT if options.short else options.kinds.split(","):
        if options.short:
            campaign.run(kind, 1, [*SHORT[kind]])
        else:
            campaign.run(kind, options.tries or ALL[kind], names)
    campaign.records.tell()
    return 1 if any(one["lost"] for one in campaign.records.all if one["kind"] != PEERS) else 0


if __name__ == "__main__":
    sys.exit(main())
