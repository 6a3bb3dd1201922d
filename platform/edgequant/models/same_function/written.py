"""`load_written`: the model that a user would load, which must be the one that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgequant.models.loading import LoadedModel, load
from edgequant.models.same_function.comparison import check_same, probe_logits, probe_tokens, rounding_limit

ROUNDED_ACTIVATIONS = 0.1  # the same kernels give the same integers, but for values at the border of two


def load_written(
    folder: Path, written: Any, tokenizer: Any, *, device: str, dtype: str = "auto", rounds_activations: bool = True
) -> LoadedModel:
    """Load a folder that was just written and compare logits with the model that it was written from.

    Args:
        written: the model as it was saved.
        tokenizer: the model's own.
        dtype: as `models.load`; where it is another than the written model's, its rounding is allowed for.
        rounds_activations: whether the model may compute with activations in integers.

    Raises:
        UserError: the two compute something else; says how far off.
    """
    tokens = probe_tokens(written, tokenizer)
    before = probe_logits(written, tokens)
    loaded = load(str(folder), dtype=dtype, device=device)
    after = probe_logits(loaded.model, tokens.to(loaded.model.device))
    limit = max(rounding_limit(written), rounding_limit(loaded.model), ROUNDED_ACTIVATIONS * rounds_activations)
    check_same(before, after, limit, f"writing the model to {folder} and loading it again")
    return loaded
