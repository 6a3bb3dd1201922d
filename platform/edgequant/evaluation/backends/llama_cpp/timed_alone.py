"""Load time, first token, decoding and peak memory of a GGUF file, in a process that holds nothing else.

    python -m edgequant.evaluation.backends.llama_cpp.timed_alone '{"path": "model.gguf", "threads": 2, ...}'

One repetition per process, its figures as one line of JSON: what was allocated before, by whatever else a process did,
counts for nothing. `time_alone` starts it. Light, as `library`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.cores import as_llama_cpp_comes
from edgequant.evaluation.backends.llama_cpp.sequence import Gguf, Sequence0


class Alone(NamedTuple):
    """One repetition: seconds to load and warm up, to the first token and to the last; bytes of memory at the most.

    Attributes:
        load: from opening the file until one token was computed, with which llama.cpp warms up.
        peak_rss: of the whole process, the interpreter's 10 MB or so with it.
    """

    load: float
    first_token: float
    total: float
    new_tokens: int
    peak_rss: int


def time_alone(
    path: Path,
    *,
    threads: int,
    prompt_length: int,
    new_tokens: int,
    seed: int = 0,
    repack: bool = True,
    gpu_layers: int = 0,
    within: Sequence[str] = (),
) -> Alone:
    """One repetition of greedy decoding behind a random prompt, in a process of its own.

    Args:
        within: what goes in front of the process's command, see `MemoryLimit.within`.

    Raises:
        UserError: the process found no figures; its last line says why.
    """
    asked = {"path": str(path), "threads": threads, "prompt_length": prompt_length, "new_tokens": new_tokens}
    done = _run_alone(asked | {"seed": seed, "repack": repack, "gpu_layers": gpu_layers}, within)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise UserError(f"{Path(path).name} could not be timed in llama.cpp: {told}")
    return Alone(**json.loads(done.stdout.splitlines()[-1]))


def _run_alone(asked: dict[str, Any], within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    environment = as_llama_cpp_comes() | {"PYTHONPATH": paths}
    command = [*within, sys.executable, "-m", __name__, json.dumps(asked)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def repacking_works(path: Path) -> bool:
    """Whether one token survives with repacked weights, tried in a process of its own.

    A virtual machine may announce AMX without letting processes use it; llama.cpp then dies with a segmentation fault.
    A negative code is a signal; anything else shows again, with its message, when loading.
    """
    tried = {"path": str(path), "threads": 1, "prompt_length": 1, "new_tokens": 1, "seed": 0, "gpu_layers": 0}
    return _run_alone(tried | {"repack": True}).returncode >= 0


def _timed(
    path: str, threads: int, prompt_length: int, new_tokens: int, seed: int, repack: bool, gpu_layers: int
) -> Alone:
    start = time.perf_counter()
    gguf = Gguf(path, repack=repack, gpu_layers=gpu_layers)
    sequence = Sequence0(gguf, context=prompt_length + new_tokens, threads=threads, outputs=1, exact=False)
    draw = random.Random(seed)
    prompt = [draw.randrange(gguf.size) for _ in range(prompt_length)]
    sequence.read(prompt[:1])
    sequence.likeliest()
    sequence.clear()
    loaded = time.perf_counter()
    moments = []
    token_ids = prompt
    for _ in range(new_tokens):
        sequence.read(token_ids)
        token_ids = [sequence.likeliest()]
        moments.append(time.perf_counter() - loaded)
    return Alone(loaded - start, moments[0], moments[-1], new_tokens, _peak_rss())


def _peak_rss() -> int:
    """Linux's ru_maxrss is inherited from whoever started the process; VmHWM is this process's own."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    try:
        print(json.dumps(_timed(**json.loads(sys.argv[1]))._asdict()))
    except UserError as error:
        sys.exit(str(error))
