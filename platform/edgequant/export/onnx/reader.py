"""An onnx folder in ONNX Runtime: logits of a whole text at once, for comparison with the model it was made of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from edgequant.errors import UserError
from edgequant.export.onnx.write import GRAPH
from edgequant.models import load_tokenizer
from edgequant.models.onnx.folder import read_genai_config


class ReadBack(NamedTuple):
    """`model(input_ids=[1, length]).logits` is [1, length, vocabulary] float32."""

    model: Any
    tokenizer: Any


def read_onnx(folder: Path) -> ReadBack:
    """Open a folder that `write_onnx` wrote.

    Raises:
        UserError: ONNX Runtime does not load it; running it, that ONNX Runtime does not compute the tokens.
    """
    try:
        session = onnxruntime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own have no class in common
        raise _refused(folder, "be loaded", error, "export it again") from error
    features = read_genai_config(folder)["decoder"]["head_size"]
    return ReadBack(_Graph(folder, session, features), load_tokenizer(str(folder)))


def _refused(folder: Path, do: str, error: Exception, fix: str) -> UserError:
    told = " ".join(str(error).split())[:200]
    return UserError(f"{folder / GRAPH} could not {do} in ONNX Runtime ({told}); {fix}")


class _Graph:
    device = "cpu"

    def __init__(self, folder: Path, session: Any, features: int) -> None:
        self._folder, self._session, self._features = folder, session, features

    def __call__(self, input_ids: Tensor) -> Any:
        ids = input_ids.numpy()
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
        inputs = self._session.get_inputs()
        feeds = {one.name: known[one.name] if one.name in known else self._nothing_before(one) for one in inputs}
        try:
            (logits,) = self._session.run(["logits"], feeds)
        except Exception as error:  # ONNX Runtime's own have no class in common
            fix = "a text must have at most as many tokens as the model's context"
            raise _refused(self._folder, f"read {ids.shape[1]} tokens", error, fix) from error
        return SimpleNamespace(logits=torch.from_numpy(logits))

    def _nothing_before(self, cache: Any) -> Any:
        """Keys or values [1, heads, 0, features] of no tokens."""
        return np.zeros((1, cache.shape[1], 0, self._features), np.float32)
