"""Whether a model can follow the settings of quantisation-aware training."""

from __future__ import annotations

from typing import Any

from edgequant.quantization.qat import low_rank, pruning
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import Scheme


def check_model(model: Any, scheme: Scheme, settings: QatSettings) -> None:
    """Refuse settings that this model cannot follow.

    Raises:
        UserError: an adapter rank or a sparsity pattern that does not fit; names the layer.
    """
    low_rank.check_rank(model, scheme, settings.lora_rank)
    pruning.check_pattern(model, scheme, settings.sparsity_pattern)
