"""Logits on a fixed text before and after a change that must keep what a model computes.

before = probe_logits(model, tokens)
... merge, convert, fold, save and reload ...
check_same(before, probe_logits(model, tokens), rounding_limit(model), "merging the adapter")
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgequant.errors import UserError

# Of a bundled document, which `models` may not read: a test compares the two.
PROBE_TEXT = (
    "Launch at night only for people whose lives will not wait until 05.45. That means persons on roofs, persons in "
    "water, women in labour, and anyone who depends on oxygen or dialysis. Families who are dry on an upper floor, "
    "with drinking water and a working telephone, are logged and told plainly that a boat will come at first light."
)
PROBE_TOKENS = 64
EXACT = 1e-3  # float32: random models of 24 blocks err by 2e-6, under adapters larger than themselves by 3e-5
ROUNDINGS = 4  # what trained models may err more than random ones, which err by about eps times sqrt(blocks)
REPORT = "this is a fault of edgequant, or the model is none that it knows; please report it"
RESTLESS = 2.0  # two roundings of the same activations may differ by the error of both


def can_be_probed(model: Any) -> bool:
    """Whether this is a language model whose vocabulary is known, not a part of one."""
    return callable(getattr(model, "get_output_embeddings", None)) and _vocabulary(model) > 0


def _vocabulary(model: Any) -> int:
    return _text_number(model, "vocab_size")


def _text_number(model: Any, name: str) -> int:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, name, None) or 0)


def probe_tokens(model: Any, tokenizer: Any = None) -> Tensor:
    """The fixed text as token ids [1, up to 64], int64, on the model's device.

    Args:
        model: a causal language model.
        tokenizer: the model's own; without one the text's bytes are taken for ids, which serves as well to compare by.
    """
    ids = list(PROBE_TEXT.encode()) if tokenizer is None else list(tokenizer(PROBE_TEXT)["input_ids"])
    length = min(PROBE_TOKENS, _text_number(model, "max_position_embeddings") or PROBE_TOKENS)
    known = [token % _vocabulary(model) for token in ids[:length]]
    return torch.tensor([known], device=next(model.parameters()).device)


@torch.no_grad()
def probe_logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits [length, vocabulary] of one forward pass in evaluation mode; float32, on the CPU."""
    training = model.training
    model.eval()
    try:
        with torch.autocast(tokens.device.type, enabled=False):
            return model(input_ids=tokens, use_cache=False).logits[0].float().cpu()  # type: ignore[no-any-return]
    finally:
        model.train(training)


def relative_difference(before: Tensor, after: Tensor) -> float:
    """Length of the difference of logits [length, vocabulary] over their spread around each position's mean.

    A constant added to a position's logits changes no probability and does not count. Infinite where one is finite and
    the other is not; entries that are finite in neither (a masked part of the vocabulary) do not count.
    """
    if before.shape != after.shape or not torch.equal(before.isfinite(), after.isfinite()):
        return math.inf
    spread = _centered(before)
    difference = float((_centered(after) - spread).norm())
    # What float32 itself rounds where all logits are about equal
    floor = torch.finfo(torch.float32).eps * float(before.nan_to_num(0.0, 0.0, 0.0).norm())
    length = max(float(spread.norm()), floor)
    return difference / length if length else (math.inf if difference else 0.0)


def _centered(logits: Tensor) -> Tensor:
    finite = logits.isfinite()
    values = logits.where(finite, torch.zeros_like(logits)).double()
    mean = values.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1)
    return (values - mean) * finite


def rounding_limit(model: Any, *, blocks: int | None = None) -> float:
    """How far logits may differ, as `relative_difference` says it, where the same is computed in another order.

    Each block adds rounding errors of its own, which grow as a random walk: eps times the root of the blocks. In
    float32 that is far below what trained models' outliers make of it, so that a fixed bound stands there.

    Args:
        model: whose parameters' types and blocks count.
        blocks: another number of blocks.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    coarse = max((torch.finfo(dtype).eps for dtype in dtypes if dtype.itemsize > 1), default=0.0)
    if next(model.parameters()).device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        coarse = max(coarse, 2.0**-10)  # TF32
    depth = _text_number(model, "num_hidden_layers") if blocks is None else blocks
    return max(EXACT, ROUNDINGS * coarse * math.sqrt(max(1, depth)))


def activation_limit(unrounded: Tensor, rounded: Tensor) -> float:
    """How far logits may differ where activations are rounded to integers twice, from values that differ by rounding.

    A value at the border of two integers falls to either side, and the next layer's inputs with it: at worst the two
    are as independent as two roundings of the same activations. How much one such rounding changes is measured.

    Args:
        unrounded, rounded: logits [length, vocabulary] with activations as they are, and as integers.
    """
    noise = relative_difference(rounded, unrounded)
    return RESTLESS * noise if math.isfinite(noise) else 0.0


def check_same(before: Tensor, after: Tensor, limit: float, change: str, fix: str = REPORT) -> float:
    """Refuse a change that was to keep the function and did not; returns the relative difference.

    Args:
        before, after: logits [length, vocabulary] of the same text. Where the first are not finite throughout, there
            is no function to keep.
        limit: relative difference that rounding explains.
        change: what was done, as the beginning of a sentence.
        fix: what to do about it.

    Raises:
        UserError: says how far off.
    """
    if before.isnan().any():
        return 0.0
    found = relative_difference(before, after)
    if found <= limit:
        return found
    raise UserError(
        f"{change} changed what the model computes: on a fixed text its logits differ by {found:.2g} of their spread, "
        f"where rounding explains {limit:.1g}; {fix}"
    )
