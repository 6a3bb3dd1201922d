"""Trials per hour of a search on one GPU, one at a time and several at a time, and on several GPUs.

    python benchmarks/search/trials_per_hour.py --model smollm2-135m --gpus 2 --sharing 3

Every side is `edgequant tune` as a user calls it, in a process and a Ray of its own, with the same space, settings and
seed, on the GPUs that it is shown (CUDA_VISIBLE_DEVICES); no trial is stopped early. Sides follow each other, nothing
else should run on those GPUs. A side has `--rounds` trials for each place; its rate is counted from the first trial's
beginning to the last one's end, PTQ and the first compilation included (each side has a compiler cache of its own);
Ray's start and the measurement on test data are not.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("platform", "tune", "benchmarks")]

from peers.table import markdown_table  # noqa: E402

from edgequant_tune.trial_records import RECORDS_FILE, read_records  # noqa: E402

ENDED = re.compile(r"trial (\d+)/\d+ +finished")
SPACE = "{learning_rate: {log_uniform: [2.0e-5, 2.0e-4]}}"


class Side(NamedTuple):
    """So many GPUs, each shared by so many trials."""

    gpus: int
    sharing: int

    @property
    def places(self) -> int:
        """Trials at a time."""
        return max(1, self.gpus) * self.sharing


class Found(NamedTuple):
    """Trials that ended well, and seconds from the first one's beginning to the last one's end."""

    trials: int
    seconds: float

    @property
    def per_hour(self) -> float:
        return 3600 * self.trials / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--gpus", type=int, default=2, help="of the widest side; 0: none, to try the script")
    parser.add_argument("--sharing", type=int, default=3, help="trials on a GPU at a time")
    parser.add_argument("--rounds", type=int, default=2, help="trials for each place")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    one = min(1, options.gpus)
    sides = dict.fromkeys([Side(one, 1), Side(one, options.sharing), Side(options.gpus, 1)])
    found = {side: searched(side, options) for side in sides}
    reference = next(iter(found.values())).per_hour
    lines = [
        [
            f"{side.gpus}",
            f"{side.sharing}",
            f"{each.trials}",
            f"{each.seconds:.0f}",
            f"{each.per_hour:.1f}",
            f"{each.per_hour / reference:.2f}",
        ]
        for side, each in found.items()
    ]
    heads = ["GPUs", "trials on each", "trials", "seconds", "trials an hour", "of the first"]
    print(markdown_table(heads, lines), flush=True)


def searched(side: Side, options: argparse.Namespace) -> Found:
    """One search."""
    visible = visible_gpus()
    if len(visible) < side.gpus:
        sys.exit(f"--gpus {side.gpus}: {len(visible)} are visible; name as many as there are")
    shown = ",".join(visible[: side.gpus])
    parts = (*(str(ROOT / name) for name in ("platform", "tune", "registry")), os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": shown, "PYTHONPATH": os.pathsep.join(parts)}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "edgequant", "tune", "--config", str(ROOT / "experiments" / "tune.yaml"),
            "--model", options.model, "--space", SPACE, "--trials", str(options.rounds * side.places),
            "--concurrent_trials", str(side.places), "--gpus_per_trial", f"{1 / side.sharing:.3f}",
            "--scheduler", "none", "--qat.init_from", "mse_clip", "--training.steps", str(options.steps),
            "--training.batch_size", str(options.batch), "--training.sequence_length", str(options.length),
            "--evaluation.tasks", "[domain_perplexity]", "--register", "false", "--output", "search",
        ]  # fmt: skip
        # Nothing of an earlier side, and nothing in the user's store.
        own = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "EDGEQUANT_CACHE")
        environment |= {name: str(Path(folder, name.lower())) for name in own}
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        ends: dict[int, float] = {}
        said = []
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if found := ENDED.match(line):
                    ends[int(found[1])] = time.time()
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said[-30:])}")
        records = read_records(next(Path(folder).rglob(RECORDS_FILE)).parent)
    if failed := [record for record in records if record.status != "finished" or record.seconds is None]:
        sys.exit(f"{failed[0].name} is {failed[0].status}: {failed[0].error}")
    begun = min(ends[record.number] - (record.seconds or 0.0) for record in records)
    return Found(len(records), max(ends.values()) - begun)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name for name in named.split(",") if name]


if __name__ == "__main__":
    main()
