"""The graph of a model: onnxruntime-genai's builder draws it, with integers, norms and angles from the model itself.

The builder knows how each architecture's layers are put together. It would read a folder, dequantise or round again,
and compute rotary angles and normalisation from the configuration; what it takes from there is given to it here.
"""

from __future__ import annotations

import copy
import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir

from edgequant.export.onnx.angles import Angles
from edgequant.export.onnx.expressible import GEMMA, head_size
from edgequant.export.onnx.matrices import Matrices

BUILDERS = {"llama": "LlamaModel", "qwen2": "QwenModel", "phi": "PhiModel", GEMMA: "Gemma3Model"}


@contextmanager
def _importable() -> Iterator[None]:
    """The builder's modules import each other by top-level names, for which its package extends the path.

    They have the root logger print what every library says at level INFO, too.
    """
    root = logging.getLogger()
    before, handlers, level = list(sys.path), list(root.handlers), root.level
    try:
        yield
    finally:
        sys.path[:] = before
        root.handlers[:] = handlers
        root.setLevel(level)


def build(model: Any, folder: Path, accuracy_level: int) -> Any:
    """Draw the graph of a model.

    Args:
        model: a checkpoint of ours, as `models.load` gives it.
        folder: in which tokenizer and generation configuration lie.
        accuracy_level: of products with integers: 1 multiplies in float32, 4 by 8-bit integers.

    Returns:
        The builder; `model` is the graph, and `make_genai_config` writes what goes with it.
    """
    config = _configuration(model, folder)
    options = {"fuse_qkv": False, "windowed_kv_cache": False}
    built = _builder(config.model_type)(config, ir.DataType.FLOAT, ir.DataType.FLOAT, "cpu", str(folder), options)
    if config.model_type == GEMMA:
        built.model_type = GEMMA  # onnxruntime-genai takes plain gemma3 for the one that sees
    built.configuration = config
    built.draw(model, accuracy_level)
    return built


def _configuration(model: Any, folder: Path) -> Any:
    """A copy in which what the builder reads under other names stands under these; `draw` brings the rest."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    rotary = model.model.rotary_emb
    frequencies = next(buffer for name, buffer in rotary.named_buffers() if name.endswith("inv_freq"))
    rotated = 2 * frequencies.shape[-1]
    known = {"architectures": [type(model).__name__], "_name_or_path": str(folder), "rope_local_base_freq": None}
    known |= {"rms_norm_eps": getattr(config, "rms_norm_eps", None) or config.layer_norm_eps}
    known |= {"rotated_features": rotated, "partial_rotary_factor": rotated / head_size(config)}
    for name, value in known.items():
        setattr(config, name, value)
    return config


@cache
def _builder(model_type: str) -> Any:
    with _importable():
        builders = importlib.import_module("onnxruntime_genai.models.builders")
    drawn = getattr(builders, BUILDERS[model_type])
    return type(f"Exact{drawn.__name__}", (_Exact, drawn), {})


class _Exact(Matrices, Angles):
    """What is the model's own, before a class of the builder in the order of its methods."""

    def make_config_init(self: Any, config: Any) -> None:
        """Nothing but what `Angles` asks for: the configuration is complete."""
        self.rotated = config.rotated_features

    def draw(self: Any, model: Any, accuracy_level: int) -> None:
        self.weights, self.accuracy_level = model, accuracy_level
        self.names: dict[int, str] = {}
        decoder, head = model.model, model.get_output_embeddings()
        final_norm = getattr(decoder, "norm", None) or decoder.final_layernorm
        self.make_inputs_and_outputs()
        self.make_preprocessing_nodes()
        self.embed_attrs["scale"] = _factor(decoder.embed_tokens)
        self.make_embedding(decoder.embed_tokens)
        for index, layer in enumerate(decoder.layers):
            self.make_layer(index, layer)
        simple = self.layernorm_attrs["simple"]
        self.make_layernorm(len(decoder.layers), final_norm, skip=True, simple=simple, location="final_norm")
        self.make_lm_head(head)
        self.make_postprocessing_nodes()

    def make_layernorm(self: Any, layer_id: int, layernorm: Any, skip: bool, simple: bool, location: str) -> None:
        super().make_layernorm(layer_id, _in_float32(layernorm), skip, simple, location)  # type: ignore[misc]

    def make_qk_norm(self: Any, layer_id: int, attention: Any) -> None:
        norms = SimpleNamespace(q_norm=_in_float32(attention.q_norm), k_norm=_in_float32(attention.k_norm))
        super().make_qk_norm(layer_id, norms)  # type: ignore[misc]


def _factor(embedding: Any) -> float:
    """What an embedding's rows are multiplied by."""
    if hasattr(embedding, "output_scale"):
        return 1.0 if embedding.output_scale is None else float(embedding.output_scale)
    return float(getattr(embedding, "scalar_embed_scale", 1.0))


def _in_float32(norm: Any) -> Any:
    """A normalisation's parameters, so that an offset is added to them before they are rounded."""
    bias = getattr(norm, "bias", None)
    return SimpleNamespace(weight=norm.weight.float(), bias=None if bias is None else bias.float())
