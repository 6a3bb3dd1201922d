"""PTQ of one model as a line of the table: what every system gets, and how the model it makes is measured."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgequant import models


@dataclass
class Row:
    """One line of the table; `bits` per weight of the linears, scales and zero points included."""

    system: str
    scheme: str
    bits: float
    perplexity: float = math.nan
    seconds: float = math.nan
    peak_gb: float = math.nan
    note: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass
class Setting:
    """What every system gets: the floating-point model, its tokenizer, calibration ids [n, length], test windows.

    With `scores`, a model is measured by that, WikiText-2 perplexity among it, instead of on the windows.
    """

    options: argparse.Namespace
    model: Any
    tokenizer: Any
    calibration: Tensor
    windows: Tensor | None
    scores: Callable[[Any], dict[str, float]] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def copy(self, dtype: torch.dtype | None = None) -> Any:
        return cast(copy.deepcopy(self.model), dtype or self.dtype)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """As a load in that type would: rotary frequencies stay in float32."""
    return models.cast(model, str(dtype).removeprefix("torch."))


def measured(row: Row, setting: Setting, make: Callable[[], Any]) -> Row:
    """Make a model, time that, and score it; a peer that fails leaves its error in the table."""
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        model = make()
        row.seconds = time.perf_counter() - start
        if setting.device.type == "cuda":
            row.peak_gb = torch.cuda.max_memory_allocated() / 1e9
        if setting.scores is not None:
            row.metrics = setting.scores(model)
            row.perplexity = row.metrics.get("wikitext2/perplexity", math.nan)
        elif setting.windows is not None:
            row.perplexity = perplexity(model, setting.windows)
    except Exception as error:
        if row.system.startswith("edgequant"):
            raise
        row.note = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    print(
        f"{row.system:32} {row.scheme:10} {row.perplexity:8.3f} {row.seconds:6.1f} s {row.peak_gb:6.2f} GB {row.note}",
        flush=True,
    )
    return row


@torch.no_grad()
def perplexity(model: Any, windows: Tensor) -> float:
    """exp(sum of nats / scored tokens) over windows [n, length]; a window's first token is not scored."""
    device = next(model.parameters()).device
    nats = 0.0
    for window in windows.to(device):
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        nats += float(nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return math.exp(nats / (windows.shape[0] * (windows.shape[1] - 1)))


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear but the head."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith("lm_head")}
