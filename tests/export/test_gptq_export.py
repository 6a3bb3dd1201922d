"""A checkpoint leaves in GPTQ's layout: read by an independent dequantiser, and by onnxruntime-genai's builder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_models import checkpoint_of, small

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.gptq.expressible import check_scheme
from edgequant.export.gptq.write import write_gptq
from edgequant.export.parity import export_parity
from edgequant.models.loading import LoadedModel
from edgequant.models.onnx import library
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.scheme import parse_scheme

SCHEMES = ["w4-g32", "w4-g64", "w8-g32", "w2-g32", "w4-g32-sym", "w8-g64-sym", "w4a8-g32", "q4_0", "q8_0", "w1.58-g64"]


def exported(loaded: LoadedModel, scheme: str, folder: Path) -> tuple[LoadedModel, Path, list[str]]:
    ours = checkpoint_of(loaded, scheme, folder / "checkpoint")
    written = write_gptq(ours, folder / "gptq")
    return ours, written.path, written.notes


def dequantised(folder: Path) -> dict[str, Any]:
    """By AutoGPTQ's description: 32 / bits values a word from the lowest bits on, qweight along the inputs, qzeros
    along the outputs and one too small (not in gptq_v2); weight = scale (code - zero)."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config == json.loads((folder / "quantize_config.json").read_text())
    bits, stored = config["bits"], load_file(folder / "model.safetensors")
    found = {}
    for path in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
        words = stored[f"{path}.qweight"].view(np.uint32)
        codes = np.zeros((words.shape[0] * 32 // bits, words.shape[1]))
        for at in range(len(codes)):
            codes[at] = (words[at * bits // 32] >> np.uint32(at % (32 // bits) * bits)) & np.uint32(2**bits - 1)
        packed = stored[f"{path}.qzeros"].view(np.uint32)
        zeros = np.zeros((packed.shape[0], packed.shape[1] * 32 // bits))
        for at in range(zeros.shape[1]):
            shift = np.uint32(at % (32 // bits) * bits)
            zeros[:, at] = (packed[:, at * bits // 32] >> shift) & np.uint32(2**bits - 1)
        zeros += config["checkpoint_format"] == "gptq"
        group = np.arange(len(codes)) // config["group_size"]
        assert np.array_equal(stored[f"{path}.g_idx"], group) and stored[f"{path}.scales"].dtype == np.float16
        found[path] = ((codes - zeros[group]) * stored[f"{path}.scales"].astype(np.float64)[group]).T
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_independent_dequantiser_finds_our_weights(scheme, tmp_path) -> None:
    ours, folder, _ = exported(small("llama", True), scheme, tmp_path)
    layers, found = integer_layers(ours.model), dequantised(folder)
    assert set(found) == set(layers)
    for path, layer in layers.items():
        assert np.array_equal(found[path], layer.dequantized_weight().double().numpy()), path


@pytest.mark.parametrize("kind", ["qwen2", "llama", "phi", "gemma3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_is_read_back_predicts_as_the_checkpoint(kind, tied, tmp_path) -> None:
    ours, folder, _ = exported(small(kind, tied), "w4-g32", tmp_path)
    text = "The river rose 42 cm in 3 hours; boats reached the school at 16:30. " * 3
    found = export_parity(models.cast(ours.model, "float32"), ours.tokenizer, folder, text, length=64)
    assert found["parity/max_logit_error"] < 1e-4 and found["parity/argmax_agreement"] == 1


def test_a_zero_point_of_0_is_not_one_less(tmp_path) -> None:
    loaded = small("llama", True)
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight.abs_()
    ours, folder, notes = exported(loaded, "w4-g32", tmp_path)
    assert json.loads((folder / "quantize_config.json").read_text())["checkpoint_format"] == "gptq_v2"
    path = "model.layers.0.mlp.up_proj"
    expected = integer_layers(ours.model)[path].dequantized_weight().double().numpy()
    assert np.array_equal(dequantised(folder)[path], expected) and "gptq_v2" in notes[1]


@pytest.mark.long
@pytest.mark.skipif(library.missing() is not None, reason="onnxruntime-genai is not installed as pinned")
def test_the_builder_of_onnxruntime_genai_reads_it(tmp_path) -> None:
    """Its own graph, made of the folder alone, gives our logits."""
    import subprocess
    import sys

    from edgequant.export.onnx.reader import read_onnx

    ours, folder, _ = exported(small("qwen2", False), "w4-g32", tmp_path)
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        str(folder),
        "-o",
        str(tmp_path / "onnx"),
    ]
    command += ["-p", "int4", "-e", "cpu", "-c", str(tmp_path / "cache")]
    # what it would round again by itself: head and embedding
    command += ["--extra_options", "accuracy_level=1", "nodes_to_exclude=/lm_head/MatMul"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = torch.randint(0, 300, (1, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = models.cast(ours.model, "float32")(input_ids=ids).logits
    assert (read_onnx(tmp_path / "onnx").model(input_ids=ids).logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("w4-g32+emb4", "an embedding in integers"),
        ("w8", "scales in float32"),
        ("w3-g64", "integers of 3 bits"),
        ("q4_1", "llama.cpp's minima"),
        ("w2-g64-sym", "levels at halves"),
        ("bnb-nf4", "bitsandbytes' data types"),
        ("w4-g32@4.5bpp", "layers of several widths"),
    ],
)
def test_a_scheme_that_it_cannot_hold_is_refused_by_name(scheme, message) -> None:
    with pytest.raises(UserError, match=f"cannot be written as gptq, whose layout has no place for {message}"):
        check_scheme(parse_scheme(scheme))


def test_matrices_that_do_not_fill_words_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(UserError, match=r"multiples of 8 rows .* got 100 x 64 in model\.layers\.0\.mlp\.gate_proj"):
        exported(small("llama", True, intermediate_size=100), "w4-g4", tmp_path)
    assert not (tmp_path / "gptq").exists()
