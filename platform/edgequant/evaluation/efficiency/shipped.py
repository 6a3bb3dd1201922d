"""What a shipped file or folder takes in its runtime: size, and times and memory of processes that hold only it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgequant.evaluation.backends.alone import Alone
from edgequant.evaluation.backends.footprint import GB
from edgequant.evaluation.backends.language_model import DecodeTiming
from edgequant.evaluation.backends.llama_cpp.timed_alone import TimesAlone
from edgequant.evaluation.backends.memory_limit import MemoryLimit
from edgequant.evaluation.efficiency.latency import median_metrics, timed_values
from edgequant.evaluation.efficiency.latency_lengths import Lengths, fitting_lengths
from edgequant.evaluation.efficiency.timed_once import once
from edgequant.files import bytes_of, content_digest
from edgequant.machine.cores import physical_cores


def shipped_metrics(
    file: Path,
    *,
    threads: int | None = None,
    prompt_length: int = 128,
    new_tokens: int = 32,
    repetitions: int = 5,
    prefix: str = "deploy",
    memory: MemoryLimit | None = None,
) -> dict[str, float]:
    """Size and peak memory in GB; medians over fresh processes in ms: load, first token, prefill and decode per token.

    One repetition more goes first and is not counted: it brings the file into the disk's cache. Medians have bounds and
    90th percentiles as `latency_metrics`. Within `timed_once` the same bytes are timed once.

    Args:
        file: a .gguf file, which llama.cpp runs, or an ONNX folder, which onnxruntime-genai runs.
        threads: CPU threads; None takes the physical cores that this process may use.
        memory: a limit in which the counted repetitions run; not where the first one, which runs outside, took more.

    Raises:
        UserError: the runtime's package is absent, it cannot read the file, or was ended within `memory`.

    Example:
        shipped_metrics(Path("model.gguf"), threads=1)["deploy/decode_ms_per_token"]
    """
    chosen = threads or physical_cores()
    lengths = {"prompt_length": prompt_length, "new_tokens": new_tokens}

    def of() -> dict[str, Any]:
        limited = None if memory is None else (memory.limit, memory.how)
        how = {"threads": chosen, "repetitions": repetitions, "memory": limited, **lengths}
        return {"file": content_digest(file), "kind": file.suffix, **how}

    def time() -> list[Alone]:
        return _repetitions(_timer(file, threads=chosen, **lengths), repetitions, memory)

    return _metrics(file, once(of, time).figures, prompt_length, chosen, prefix)


def _repetitions(time_one: Callable[..., Alone], repetitions: int, memory: MemoryLimit | None) -> list[Alone]:
    """The first, which is not counted, and the others."""
    first = time_one(seed=0)
    within = memory.within if memory is not None and first.peak_rss <= memory.limit else ()
    return [first, *(time_one(seed=1 + repetition, within=within) for repetition in range(repetitions))]


def _metrics(file: Path, found: list[Alone], prompt_length: int, threads: int, prefix: str) -> dict[str, float]:
    alone = found[1:]
    timed = [DecodeTiming(each.first_token, each.total, each.new_tokens, each.load) for each in alone]
    values = timed_values(timed, prompt_length) | {"load_ms": np.array([1000 * each.load for each in alone])}
    metrics = {f"{prefix}/size_gb": bytes_of(file) / GB, f"{prefix}/threads": float(threads)}
    metrics[f"{prefix}/peak_rss_gb"] = max(each.peak_rss for each in found) / GB
    for name, measured in values.items():
        metrics |= median_metrics(f"{prefix}/{name}", measured, 0.95)
    return metrics


def fitting_shipped(file: Path, prompt_length: int, new_tokens: int) -> Lengths:
    """The lengths that are timed: default ones are shortened to the context that a shipped file states.

    ONNX Runtime refuses longer ones; llama.cpp would time positions that the model was not made for.

    Raises:
        UserError: a file that cannot be read; lengths that were asked for and do not fit.
    """
    lengths = Lengths((prompt_length,), new_tokens)
    context = _stated_context(file)
    if context is not None:
        lengths = fitting_lengths(*lengths, context)
        lengths.check(context)
    return lengths


def _stated_context(file: Path) -> int | None:
    if file.is_dir():
        from edgequant.models.onnx.folder import read_genai_config

        return int(read_genai_config(file)["context_length"])
    from edgequant.models.gguf.contents import read_contents

    stated = read_contents(file).take("context_length")
    return int(stated) if isinstance(stated, int) and stated > 0 else None


def _timer(file: Path, **asked: Any) -> Callable[..., Alone]:
    """One repetition of a seed in the runtime of the file."""
    if file.is_dir():
        from edgequant.evaluation.backends.onnx import sequence, timed_alone

        sequence.check_folder(file)
        return partial(timed_alone.time_alone, file, **asked)
    return TimesAlone(file, **asked)
