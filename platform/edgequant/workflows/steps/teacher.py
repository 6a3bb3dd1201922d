"""A teacher that is not the student's own model: a larger one that reads the same tokens."""

from __future__ import annotations

from typing import Any

from torch import nn


def load_teacher(source: str, tokenizer: Any, student: nn.Module, device: str) -> nn.Module:
    """PLACEHOLDER"""
    raise NotImplementedError
