"""Measured models with scores by item in a store, as a run of `qat --adapt true` leaves them, with invented scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, sin
from typing import Any

from edgequant import tracking

DOCUMENTS, TOKENS = 8, 100
SPREAD = [(-1) ** at * (1 + at % 3) for at in range(DOCUMENTS)]  # of the documents' nats


def store_adapted(
    levels: Mapping[str, float],
    *,
    model: str = "m",
    noise: Mapping[str, float] | None = None,
    delivered: str = "qat",
    tags: Mapping[str, str] | None = None,
    scheme: str = "w4-g32",
) -> str:
    """A run that measured variants with some loss per token on the same documents; returns its id.

    Args:
        levels: mean nats per token by variant.
        noise: by variant, nats by which its documents scatter around that, every second one up and down.
    """
    config = {"model": model, "scheme": scheme, "dataset": "disaster", "evaluation": {"limit": 8}}
    with tracking.workflow_run("qat", config) as run:
        tracking.set_tags({"edgequant.delivered": delivered, **(tags or {})})
        for variant, level in levels.items():
            own = "none" if variant in ("baseline", "control") else scheme
            with tracking.variant_run(variant, model=model, scheme=own, phase="qat"):
                items = _items(level, (noise or {}).get(variant, 0.0))
                perplexity = exp(sum(item["nats"] for item in items) / (DOCUMENTS * TOKENS))
                size = 0.27 if own == "none" else 0.08
                tracking.log_metrics(_metrics(perplexity, size))
                tracking.log_table(items, "items/domain.json")
    return run.id


def _metrics(perplexity: float, size: float) -> dict[str, float]:
    return {
        "domain/perplexity": perplexity,
        "domain/perplexity_shelter": perplexity,
        "domain/perplexity_wash": 1.5 * perplexity,
        "size/checkpoint_gb": size,
        "size/reduction_vs_fp16": 100 * (1 - size / 0.27),
    }


def _items(level: float, noise: float) -> Sequence[dict[str, Any]]:
    """No two models differ by the same in every document: there would be no spread to tell an interval from."""
    return [
        {"id": f"document-{at}", "tokens": TOKENS, "domain": "shelter" if at % 2 else "wash",
         "nats": TOKENS * level + SPREAD[at] + 0.5 * sin(9 * level * at) + noise * (-1) ** (at // 2) * (1 + at % 2)}
        for at in range(DOCUMENTS)
    ]  # fmt: skip
