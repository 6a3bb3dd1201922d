"""Time and memory of the corpus pipeline at 1x, 4x and 16x the input: growth should be linear in words.

python benchmarks/corpora/corpora_scaling.py FOLDER [TOKENIZER]     # of the FEMA PDFs, say; a cache of its own

Copies differ in one appended comment, so that no result comes from the cache; near-duplicate removal then has the most
it can have to do. CPU seconds (of the process and its workers) tell growth even on a busy machine. Memory is the
proportional set size of the process and its workers, sampled every two seconds.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SCALES = (1, 4, 16)
ROOT = Path(__file__).resolve().parents[2]


def main(source: Path, tokenizer: str) -> None:
    print(f"{'scale':>5} {'files':>6} {'seconds':>8} {'CPU s':>8} {'CPU s/scale':>12} {'peak MB':>8}", flush=True)
    for scale in SCALES:
        with tempfile.TemporaryDirectory(prefix="corpora-") as temporary:
            folder = Path(temporary)
            files = copy_files(source, folder / "in", scale)
            seconds, cpu, peak = run(folder, tokenizer)
        print(f"{scale:>4}x {files:>6} {seconds:>8.1f} {cpu:>8.1f} {cpu / scale:>12.1f} {peak:>8.0f}", flush=True)


def copy_files(source: Path, target: Path, scale: int) -> int:
    target.mkdir()
    files = sorted(path for path in source.iterdir() if path.is_file())
    for number in range(scale):
        for path in files:
            copy = target / f"{number:02}-{path.name}"
            shutil.copy(path, copy)
            with copy.open("ab") as handle:
                handle.write(b"\n%% copy %d\n" % number)
    return len(files) * scale


def run(folder: Path, tokenizer: str) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak MB) of one `edgequant corpus` in a fresh process with an empty cache and store."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "EDGEQUANT_CACHE": str(folder / "cache")}
    arguments = ["corpus", "--source", str(folder / "in"), "--output", str(folder / "out"), "--tokenizer", tokenizer]
    started, cpu = time.monotonic(), cpu_of_children()
    process = psutil.Popen(
        [sys.executable, "-m", "edgequant", *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory(process))
        time.sleep(2)
    if process.returncode:
        sys.exit(f"edgequant corpus ended with {process.returncode}")
    return time.monotonic() - started, cpu_of_children() - cpu, peak / 1e6


def cpu_of_children() -> float:
    """Of ended processes, those that they started and waited for included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(process: psutil.Popen) -> float:
    total = 0.0
    for part in [process, *process.children(recursive=True)]:
        try:
            total += part.memory_full_info().pss
        except psutil.Error:  # ended between listing and looking
            continue
    return total


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m")
