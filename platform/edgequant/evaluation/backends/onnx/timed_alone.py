"""Load time, first token, decoding and peak memory of an ONNX folder, in a process that holds nothing else.

    python -m edgequant.evaluation.backends.onnx.timed_alone '{"path": "folder", "threads": 2, ...}'

One repetition per process, its figures as one line of JSON. `time_alone` starts it. It holds onnxruntime-genai and the
numpy that this needs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgequant.evaluation.backends.alone import Alone, figures_alone, peak_rss, tell_figures
from edgequant.evaluation.backends.onnx.sequence import GenaiModel


def time_alone(
    folder: Path, *, threads: int, prompt_length: int, new_tokens: int, seed: int = 0, within: Sequence[str] = ()
) -> Alone:
    """One repetition of greedy decoding behind a random prompt, in a process of its own.

    Args:
        within: a command that runs it, such as one that limits its memory.

    Raises:
        UserError: the process found no figures; its last line says why.
    """
    asked = {"path": str(folder), "threads": threads, "prompt_length": prompt_length, "new_tokens": new_tokens}
    return figures_alone(__name__, asked | {"seed": seed}, "onnxruntime-genai", within)


def _timed(path: str, threads: int, prompt_length: int, new_tokens: int, seed: int) -> Alone:
    start = time.perf_counter()
    model = GenaiModel(path, threads=threads, spins=True)
    length = prompt_length + new_tokens
    generator = model.generator(length, least=length)
    draw = random.Random(seed)
    prompt = np.array([draw.randrange(model.vocabulary) for _ in range(prompt_length)], np.int32)
    generator.append_tokens(prompt[:1])
    generator.generate_next_token()
    generator.rewind_to(0)
    loaded = time.perf_counter()
    moments = []
    generator.append_tokens(prompt)
    for _ in range(new_tokens):
        generator.generate_next_token()
        moments.append(time.perf_counter() - loaded)
    return Alone(loaded - start, moments[0], moments[-1], new_tokens, peak_rss())


if __name__ == "__main__":
    tell_figures(_timed)
