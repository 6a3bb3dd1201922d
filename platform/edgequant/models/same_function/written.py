"""`load_written`: the model that a user would load, which must be the one that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgequant.models.loading import LoadedModel, load
from edgequant.models.same_function.comparison import check_same, probe_logits, probe_tokens, rounding_limit

# The same kernels give the same integers, but where float32 sums differ in their last bit: activations at the border
# of two integers then fall to the other side, and on SmolLM2 w8a8-static the logits differ by 0.2 for that alone.
ROUNDED_ACTIVATIONS = 0.5


def load_written(
    folder: Path, written: Any, tokenizer: Any, *, device: str, rounded_activations: bool, dtype: str = "auto"
) -> LoadedModel:
    """Load a folder that was just written and compare logits with the model that it was written from.

    Args:
        written: the model as it was saved.
        tokenizer: the model's own.
        dtype: as `models.load`; where it is another than the written model's, its rounding is allowed for.
        rounded_activations: whether the model computes with activations in integers.

    Raises:
        UserError: the two compute something else; says how far off.
    """
    tokens = probe_tokens(written, tokenizer)
    before = probe_logits(written, tokens)
    loaded = load(str(folder), dtype=dtype, device=device)
    after = probe_logits(loaded.model, tokens.to(loaded.model.device))
    limit = max(rounding_limit(written), rounding_limit(loaded.model), ROUNDED_ACTIVATIONS * rounded_activations)
    check_same(before, after, limit, f"writing the model to {folder} and loading it again")
    return loaded
