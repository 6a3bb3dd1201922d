"""Write a quantised checkpoint as a folder for onnxruntime-genai, which runs it without edgequant and without torch."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgequant.export.formats import ONNX, Exported, checkpoint_scheme
from edgequant.export.onnx.expressible import check_configuration, check_scheme, container_of
from edgequant.export.onnx.graph import build
from edgequant.export.onnx.matrices import INT8_PRODUCTS
from edgequant.files import bytes_of, sha256_of, write_atomically
from edgequant.folders import atomic_folder
from edgequant.models.loading import LoadedModel
from edgequant.models.onnx.folder import PARAMETERS, SCHEME
from edgequant.models.onnx.library import check_installed
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.scheme import Scheme

GRAPH, WEIGHTS, VOCABULARY = "model.onnx", "model.onnx.data", "tokenizer.json"


def write_onnx(loaded: LoadedModel, folder: str | Path, *, accuracy_level: int | None = None) -> Exported:
    """Write a quantised checkpoint's integers, scales and zero points as they are, whole or not at all.

    A tied head computes with the embedding's integers, which lie there once. Scales lie in the type of the checkpoint.

    Args:
        loaded: a checkpoint of ours, as `models.load` gives it.
        folder: to write: new, empty, or an earlier export, which is replaced.
        accuracy_level: of MatMulNBits; None: 4 (8-bit integers) for layers whose inputs the scheme quantises, and 1
            (float32) for the others.

    Raises:
        UserError: the model is not a quantised checkpoint, the graph has no place for its scheme or architecture, or
            onnxruntime-genai is absent.
    """
    check_installed()
    scheme, model = checkpoint_scheme(loaded, ONNX), loaded.model
    check_scheme(scheme)
    check_configuration(model.config, loaded.tokenizer)
    with atomic_folder(folder, ONNX) as temporary:
        loaded.tokenizer.save_pretrained(temporary)
        _without_indents(temporary / VOCABULARY)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(temporary)
        _write_graph(model, scheme, temporary, accuracy_level)
    size = bytes_of(Path(folder))
    parameters = int(model.config.num_parameters_unquantized)
    return Exported(Path(folder), size, sha256_of(Path(folder) / WEIGHTS), parameters, _notes(model))


def _without_indents(file: Path) -> None:
    """Of SmolLM2's 3.5 MB more than half are spaces and line ends."""
    if file.is_file():
        written = json.loads(file.read_text(encoding="utf-8"))
        write_atomically(file, json.dumps(written, ensure_ascii=False, separators=(",", ":")))


def _write_graph(model: Any, scheme: Scheme, folder: Path, accuracy_level: int | None) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # the builder tells what it does
        built = build(model, folder, INT8_PRODUCTS if accuracy_level is None else accuracy_level)
        built.make_genai_config(built.configuration, {}, str(folder))
    graph = built.model
    graph.metadata_props.update({SCHEME: scheme.name, PARAMETERS: str(model.config.num_parameters_unquantized)})
    built.stamp_build_metadata(graph)
    graph.graph.sort()
    ir.save(graph, folder / GRAPH, external_data=WEIGHTS)


def _notes(model: Any) -> list[str]:
    layers = integer_layers(model).values()
    notes = [f"{len(layers)} quantised matrices keep the checkpoint's integers"]
    specs = [layer.packed.spec for layer in layers]
    widened = [spec for spec in specs if container_of(3 if spec.has_half_levels else spec.bits) > spec.bits]
    if widened:
        notes.append(f"{len(widened)} of them lie in the next wider integers that MatMulNBits takes, 2, 4 or 8 bits")
    if any(layer.activation is not None for layer in layers):
        notes.append("activations: ONNX Runtime quantises them to 8 bits its own way (blocks of inputs, at run time)")
    return notes
