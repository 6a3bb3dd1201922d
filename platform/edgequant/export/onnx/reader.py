"""An onnx folder in ONNX Runtime: logits of a whole text at once, for comparison with the model it was made of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from edgequant.export.onnx.write import GRAPH
from edgequant.models import load_tokenizer
from edgequant.models.onnx.folder import read_genai_config


class ReadBack(NamedTuple):
    """`model(input_ids=[1, length]).logits` is [1, length, vocabulary] float32."""

    model: Any
    tokenizer: Any


def read_onnx(folder: Path) -> ReadBack:
    """Open a folder that `write_onnx` wrote."""
    session = onnxruntime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
    features = read_genai_config(folder)["decoder"]["head_size"]
    return ReadBack(_Graph(session, features), load_tokenizer(str(folder)))


class _Graph:
    device = "cpu"

    def __init__(self, session: Any, features: int) -> None:
        self._session, self._features = session, features

    def __call__(self, input_ids: Tensor) -> Any:
        ids = input_ids.numpy()
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
        inputs = self._session.get_inputs()
        feeds = {one.name: known[one.name] if one.name in known else self._nothing_before(one) for one in inputs}
        (logits,) = self._session.run(["logits"], feeds)
        return SimpleNamespace(logits=torch.from_numpy(logits))

    def _nothing_before(self, cache: Any) -> Any:
        """Keys or values [1, heads, 0, features] of no tokens."""
        return np.zeros((1, cache.shape[1], 0, self._features), np.float32)
