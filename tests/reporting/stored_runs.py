"""Runs in a store, made through tracking as workflows make them, with invented metrics."""

from __future__ import annotations

from typing import Any

from edgequant import tracking

QAT_VARIANTS: list[tuple[str, str, dict[str, float]]] = [
    ("baseline", "none", {"domain/perplexity": 21.78, "size/checkpoint_gb": 0.269, "size/reduction_vs_fp16": 0.0}),
    ("ptq", "w4a8-g32+emb4", {"domain/perplexity": 33.1, "size/checkpoint_gb": 0.078, "size/reduction_vs_fp16": 71.0}),
    ("qat", "w4a8-g32+emb4", {"domain/perplexity": 22.4, "size/checkpoint_gb": 0.078, "size/reduction_vs_fp16": 71.0}),
]


def store_qat(
    model: str = "smollm2-135m", settings: dict[str, Any] | None = None, warning: str = "", better: float = 0.0
) -> str:
    """A finished `qat` workflow with three measured models; returns its run id."""
    config = {"model": model, "scheme": "w4a8-g32+emb4", "evaluation": settings or {"limit": 200, "window": None}}
    with tracking.workflow_run("qat", config) as run:
        if warning:
            tracking.set_tags({"edgequant.warnings": warning})
        for variant, scheme, metrics in QAT_VARIANTS:
            with tracking.variant_run(variant, model=model, scheme=scheme, phase="quantisation"):
                tracking.log_metrics(with_intervals(metrics, better))
    return run.id


def with_intervals(metrics: dict[str, float], better: float = 0.0) -> dict[str, float]:
    """More metrics made of the perplexity, with intervals."""
    perplexity = metrics["domain/perplexity"] - better
    f1 = 60 - perplexity
    return metrics | {
        "domain/perplexity": perplexity,
        "squad/f1": f1,
        "squad/f1_ci_low": f1 - 3,
        "squad/f1_ci_high": f1 + 2.5,
        "latency/decode_ms_per_token": 20 + perplexity,
    }
