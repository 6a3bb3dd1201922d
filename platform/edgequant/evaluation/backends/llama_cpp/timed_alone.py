"""Load time, first token, decoding and peak memory of a GGUF file, in a process that holds nothing else.

    python -m edgequant.evaluation.backends.llama_cpp.timed_alone '{"path": "model.gguf", "threads": 2, ...}'

One repetition per process, its figures as one line of JSON: what was allocated before, by whatever else a process did,
counts for nothing. `time_alone` starts it. Light, as `library`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from edgequant.evaluation.backends.alone import Alone, Killed, figures_alone, peak_rss, run_alone, tell_figures
from edgequant.evaluation.backends.llama_cpp.sequence import Gguf, Sequence0


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
        Killed: a signal ended the process.
        UserError: the process found no figures; its last line says why.
    """
    asked = {"path": str(path), "threads": threads, "prompt_length": prompt_length, "new_tokens": new_tokens}
    asked |= {"seed": seed, "repack": repack, "gpu_layers": gpu_layers}
    return figures_alone(__name__, asked, "llama.cpp", within)


class TimesAlone:
    """`time_alone` of a file, one repetition after the other; the first tells whether weights may be repacked
    (`repacking_works`), for all that follow.

    Args:
        asked: arguments of `time_alone` that all repetitions share.
    """

    def __init__(self, path: Path, **asked: int) -> None:
        self.path, self._asked, self._repacks = path, asked, True
        self._is_first = True

    def __call__(self, *, seed: int, within: Sequence[str] = ()) -> Alone:
        """A repetition; raises as `time_alone`."""
        is_first, self._is_first = self._is_first, False
        try:
            return time_alone(self.path, seed=seed, within=within, repack=self._repacks, **self._asked)
        except Killed:
            if not is_first:
                raise
            self._repacks = False
            return time_alone(self.path, seed=seed, within=within, repack=False, **self._asked)


def repacking_works(path: Path) -> bool:
    """Whether one token survives with repacked weights, tried in a process of its own.

    A virtual machine may announce AMX without letting processes use it; llama.cpp then dies with a segmentation fault.
    A negative code is a signal; anything else shows again, with its message, when loading.
    """
    tried = {"path": str(path), "threads": 1, "prompt_length": 1, "new_tokens": 1, "seed": 0, "gpu_layers": 0}
    return run_alone(__name__, tried | {"repack": True}).returncode >= 0


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
    return Alone(loaded - start, moments[0], moments[-1], new_tokens, peak_rss())


if __name__ == "__main__":
    tell_figures(_timed)
