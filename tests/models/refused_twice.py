"""Models are checked before a run exists and again while they are loaded: both must say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgequant import models
from edgequant.errors import UserError


def load(folder: Path) -> Any:
    """The loaded model, tokenizer and source, in float32, of a folder that the check before a run lets pass."""
    models.check_available(str(folder))
    return models.load(str(folder), dtype="float32", device="cpu")


def refusal(folder: Path) -> str:
    """The message, which is the same before a run and while loading."""
    messages = []
    for attempt in (models.check_available, lambda source: models.load(source, dtype="float32", device="cpu")):
        with pytest.raises(UserError) as refused:
            attempt(str(folder))
        messages.append(str(refused.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]
    return messages[0]
