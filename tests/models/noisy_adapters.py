"""Adapters whose weights are noise, saved by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model

TOKENS = torch.arange(40)[None]


def logits(model: Any) -> torch.Tensor:
    """Of TOKENS: [1, 40, vocabulary] float32."""
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


def save_noisy(
    model: Any, config: PeftConfig, folder: Path, base: str = "tiny", *, noise: float, embeddings: Any = "auto"
) -> torch.Tensor:
    """Put noise into everything that trains, save, and return the logits of the model with the adapter on top."""
    adapted = get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(noise * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder, save_embedding_layers=embeddings)
    return logits(adapted.eval())
