"""The task `latency`: how long greedy decoding takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.tasks.task import Evaluation, Metric, Rows, Task

if TYPE_CHECKING:
    from edgequant.evaluation.efficiency.latency import LatencyProtocol


DECODE = "latency/decode_ms_per_token"


def timing_protocol(model: LanguageModel, settings: ScoringSettings) -> LatencyProtocol:
    """What the settings ask to time, with what they leave open filled in for the model's device."""
    from edgequant.evaluation.efficiency.latency import latency_protocol

    return latency_protocol(
        model, settings.latency_prompt_lengths, settings.latency_batch_sizes, settings.latency_new_tokens,
        settings.latency_repetitions, settings.latency_warmup, settings.seed, settings.latency_methods,
        settings.confidence,
    )  # fmt: skip


def shortened(model: LanguageModel, settings: ScoringSettings, protocol: LatencyProtocol) -> list[str]:
    """A note that default lengths were shortened, where they were."""
    from edgequant.evaluation.efficiency.latency_lengths import wanted_lengths

    wanted = wanted_lengths(settings.latency_prompt_lengths, settings.latency_new_tokens, on_gpu=model.on_gpu)
    if (protocol.prompt_lengths, protocol.new_tokens) == wanted:
        return []
    prompts = " and ".join(map(str, protocol.prompt_lengths))
    return [
        f"latency: timed with prompts of {prompts} and {protocol.new_tokens} new tokens; the default lengths do not "
        f"fit the model's context of {model.context_length}"
    ]


def _score(model: LanguageModel, data: Mapping[str, Rows], settings: ScoringSettings) -> Evaluation:
    from edgequant.evaluation.efficiency.latency import latency_metrics
    from edgequant.evaluation.efficiency.timed_once import SAID, once

    protocol = timing_protocol(model, settings)
    (metrics, rows), earlier = once(
        lambda: {**model.description, "weights": model.weights_digest(), "protocol": protocol},
        lambda: latency_metrics(model, protocol),
    )
    notes = [f"latency: {protocol}", *shortened(model, settings, protocol), *([f"latency: {SAID}"] if earlier else [])]
    if DECODE not in metrics and "generate" in protocol.methods:
        notes.append(f"{DECODE} was left out: {protocol.new_tokens} new tokens do not tell it; decode more")
    return Evaluation(metrics, {"latency": rows}, notes)


LATENCY = Task(
    name="latency",
    kind="efficiency",
    score=_score,
    protocol="Median over timed repetitions after warm-up, fixed prompt and output lengths, with bounds by order "
    "statistics (of five, their range: 93.75 %); p90 is the 90th percentile. "
    "Decode is (end to end - first token) / (tokens - 1). "
    "A GGUF file in llama.cpp is timed in fresh processes, one a repetition.",
    display={
        DECODE: Metric("decode ms/token", "", "lower"),
        "latency/decode_ms_per_token_p90": Metric("decode ms/token p90", "", "lower", prominence="detail"),
        "latency/prefill_ms_per_token": Metric("prefill ms/token", "", "lower", prominence="table"),
        "latency/prefill_ms_per_token_p90": Metric("prefill ms/token p90", "", "lower", prominence="detail"),
        "latency/time_to_first_token_ms": Metric("first token", "ms", "lower", prominence="table"),
        "latency/load_ms": Metric("load", "ms", "lower", prominence="table"),
        "latency/time_to_first_token_ms_p90": Metric("first token p90", "ms", "lower", prominence="detail"),
    },
)
