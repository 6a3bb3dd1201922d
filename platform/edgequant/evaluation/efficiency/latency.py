"""Latency of greedy decoding: time to first token, prefill and decode per token; medians, bounds, 90th percentile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgequant.evaluation.backends.language_model import DecodeTiming, LanguageModel
from edgequant.evaluation.efficiency.latency_lengths import Lengths, fitting_lengths
from edgequant.evaluation.statistics.intervals import with_bounds
from edgequant.evaluation.statistics.medians import median_bounds


@dataclass(frozen=True, kw_only=True)
class LatencyProtocol:
    """What is timed. The first prompt length and batch size are the headline; others carry their shape in the name."""

    prompt_lengths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    new_tokens: int
    repetitions: int = 5
    warmup: int = 2
    seed: int = 0
    methods: tuple[str, ...] = ("generate", "static")
    confidence: float = 0.95


def latency_protocol(
    model: LanguageModel,
    prompt_lengths: tuple[int, ...] | None = None,
    batch_sizes: tuple[int, ...] | None = None,
    new_tokens: int | None = None,
    repetitions: int = 5,
    warmup: int = 2,
    seed: int = 0,
    methods: tuple[str, ...] = ("generate", "static"),
    confidence: float = 0.95,
) -> LatencyProtocol:
    """The protocol asked for, with what is left open filled in for the device: 512/128 on a GPU, 128/32 on a CPU.

    Default lengths are shortened to the model's context (`fitting_lengths`).
    """
    lengths = fitting_lengths(prompt_lengths, new_tokens, model.context_length, on_gpu=model.on_gpu)
    return LatencyProtocol(
        prompt_lengths=lengths.prompts,
        batch_sizes=batch_sizes or ((1, 8) if model.on_gpu else (1,)),
        new_tokens=lengths.new,
        repetitions=repetitions,
        warmup=warmup,
        seed=seed,
        methods=tuple(method for method in model.decode_methods if method in methods),
        confidence=confidence,
    )


def latency_metrics(model: LanguageModel, protocol: LatencyProtocol) -> tuple[dict[str, float], list[dict]]:
    """Time decoding for every prompt length and batch size, through plain `generate` and through a static cache.

    `latency/decode_ms_per_token` is plain `generate` at the headline shape; `latency/static_decode_ms_per_token` is the
    static cache (with a CUDA graph on a GPU) at the same shape. Other shapes end in `_prompt128_batch8`.

    A model that is loaded anew for each repetition has `latency/load_ms` too, once.

    Returns:
        Metrics in milliseconds, and one row per repetition.

    Raises:
        UserError: a prompt with its answer does not fit the model's context.
    """
    Lengths(protocol.prompt_lengths, protocol.new_tokens).check(model.context_length)
    metrics: dict[str, float] = {}
    rows: list[dict] = []
    for prompt_length in protocol.prompt_lengths:
        for batch_size in protocol.batch_sizes:
            headline = (prompt_length, batch_size) == (protocol.prompt_lengths[0], protocol.batch_sizes[0])
            suffix = "" if headline else f"_prompt{prompt_length}_batch{batch_size}"
            # The static cache is the fastest single-stream figure; other batch sizes are for throughput.
            for method in protocol.methods if batch_size == protocol.batch_sizes[0] else protocol.methods[:1]:
                timed = _timed(model, protocol, method, prompt_length, batch_size)
                values = timed_values(timed, prompt_length * batch_size)
                kind = "" if method == "generate" else f"{method}_"
                for name, measured in values.items():
                    metrics |= median_metrics(f"latency/{kind}{name}{suffix}", measured, protocol.confidence)
                if headline and all(timing.load is not None for timing in timed):
                    loads = np.array([1000 * (timing.load or 0) for timing in timed])
                    metrics |= median_metrics("latency/load_ms", loads, protocol.confidence)
                rows += [_row(method, prompt_length, batch_size, timing) for timing in timed]
    return metrics, rows


def decode_milliseconds(timing: DecodeTiming) -> float:
    """(end to end - first token) / (N - 1), in ms per token; 0 where only one token was decoded."""
    return 1000 * (timing.total - timing.first_token) / max(1, timing.new_tokens - 1)


def _timed(
    model: LanguageModel, protocol: LatencyProtocol, method: str, prompt_length: int, batch_size: int
) -> list[DecodeTiming]:
    everything = protocol.warmup + protocol.repetitions
    timed = model.decode_timings(method, prompt_length, batch_size, protocol.new_tokens, everything, protocol.seed)
    return list(timed)[protocol.warmup :]


def timed_values(timed: list[DecodeTiming], prompt_tokens: int) -> dict[str, np.ndarray]:
    """Milliseconds of every repetition by metric: to the first token, prefill and decode per token."""
    first = 1000 * np.array([timing.first_token for timing in timed])
    decode = np.array([decode_milliseconds(timing) for timing in timed])
    values = {"time_to_first_token_ms": first, "prefill_ms_per_token": first / prompt_tokens}
    # First token and end are timed apart: of one token, or of few under load, the difference is noise.
    if min(timing.new_tokens for timing in timed) > 1 and np.median(decode) > 0:
        values["decode_ms_per_token"] = decode
    return values


def median_metrics(name: str, measured: np.ndarray, confidence: float) -> dict[str, float]:
    """Median under `name`, its bounds, and the 90th percentile."""
    metrics = with_bounds(name, float(np.median(measured)), median_bounds(measured.tolist(), confidence))
    if len(measured) > 1:  # of one repetition it would be that one
        metrics[f"{name}_p90"] = float(np.percentile(measured, 90))
    return metrics


def _row(method: str, prompt_length: int, batch_size: int, timing: DecodeTiming) -> dict:
    return {
        "method": method,
        "prompt_length": prompt_length,
        "batch_size": batch_size,
        "new_tokens": timing.new_tokens,
        "time_to_first_token_ms": 1000 * timing.first_token,
        "decode_ms_per_token": decode_milliseconds(timing),
    } | ({} if timing.load is None else {"load_ms": 1000 * timing.load})
