"""A checkpoint leaves as a folder for onnxruntime-genai: same integers, same predictions, without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import TEXT, checkpoint_of, small

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.onnx.expressible import check_configuration, check_scheme
from edgequant.folders import MARKER
from edgequant.models.loading import LoadedModel
from edgequant.models.onnx import library
from edgequant.quantization.layers.integer import IntegerLinear, integer_layers
from edgequant.quantization.scheme import parse_scheme

pytestmark = pytest.mark.skipif(library.missing() is not None, reason="onnxruntime-genai is not installed as pinned")
WIDTHS = ["w8", "w8+emb8", "w4-g32+emb4", "w4-g48", "w3-g64+emb3", "w2-g32+emb2", "w5-g32+emb8", "q8_0", "q4_0+emb4"]
SYMMETRIC = ["w4-g32-sym+emb4", "w8-sym+emb8", "w2-g32-sym", "w1.58-g32+emb4", "q4_0+embq4_0", "q8_0+embq8_0"]
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(("llama", {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}) for kind, more in ROPES.items()),
    ("llama", {"head_dim": 24, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3, "hidden_act": "gelu"}),
    ("llama", {"intermediate_size": 416}),  # as many as the vocabulary has tokens
    ("qwen2", {"head_dim": 32}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("phi", {"partial_rotary_factor": 0.4}),  # 6 of 16 features
    ("phi", {"layer_norm_eps": 1e-2, "num_key_value_heads": 2}),
    ("gemma3", {"query_pre_attn_scalar": 99, "attention_bias": True, "final_logit_softcapping": 2.0}),
    ("gemma3", {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}),
]


def exported(loaded: LoadedModel, scheme: str, folder: Path, **options: Any) -> tuple[LoadedModel, Any]:
    """Our checkpoint in float32, and what was written of it."""
    from edgequant.export.onnx.write import write_onnx

    ours = checkpoint_of(loaded, scheme, folder / "checkpoint")
    return ours._replace(model=models.cast(ours.model, "float32")), write_onnx(ours, folder / "onnx", **options)


def largest_difference(ours: LoadedModel, folder: Path, length: int = 40) -> float:
    """Of a logit, over the largest logit."""
    from edgequant.export.onnx.reader import read_onnx

    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, ours.model.config.vocab_size, (1, length), generator=generator)
    with torch.no_grad():
        expected = ours.model(input_ids=ids).logits
    found = read_onnx(folder).model(input_ids=ids).logits
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "phi", "gemma3"])
def test_logits_in_onnx_runtime_are_ours_for_the_four_architectures(kind, tied, tmp_path) -> None:
    ours, written = exported(small(kind, tied), "w4-g32+emb4", tmp_path)
    assert largest_difference(ours, written.path) < 1e-5


@pytest.mark.parametrize("scheme", WIDTHS + SYMMETRIC)
def test_integers_of_every_width_are_kept(scheme, tmp_path) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 192} if "g48" in scheme else {}
    ours, written = exported(small("llama", True, **sizes), scheme, tmp_path)
    assert largest_difference(ours, written.path) < 1e-5


@pytest.mark.parametrize(("kind", "values"), VARIANTS, ids=str)
def test_models_with_other_sizes_angles_and_norms_are_computed_as_transformers_does(kind, values, tmp_path) -> None:
    ours, written = exported(small(kind, True, **values), "w4-g32+emb4", tmp_path)
    assert largest_difference(ours, written.path) < 1e-5


def test_rows_with_one_scale_that_no_block_divides_are_padded(tmp_path) -> None:
    sizes = {"hidden_size": 72, "intermediate_size": 100, "head_dim": 24}
    ours, written = exported(
        small("llama", True, num_attention_heads=3, num_key_value_heads=1, **sizes), "w8+emb8", tmp_path
    )
    assert largest_difference(ours, written.path) < 1e-5


def test_inputs_in_8_bits_change_the_accuracy_level_and_not_the_integers(tmp_path) -> None:
    import onnx

    ours, written = exported(small("qwen2", True), "w4a8-g32+emb4", tmp_path)
    nodes = onnx.load(written.path / "model.onnx", load_external_data=False).graph.node
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    levels = {attribute.i for node in products for attribute in node.attribute if attribute.name == "accuracy_level"}
    assert len(products) == 15 and levels == {4}
    assert largest_difference(ours, written.path) < 0.1  # both quantise inputs, each its own way
    _, exact = exported(small("qwen2", True), "w4a8-g32+emb4", tmp_path / "exact", accuracy_level=1)
    for layer in integer_layers(ours.model).values():
        layer.activation = None
    assert largest_difference(ours, exact.path) < 1e-5


def test_a_tied_head_reads_the_embeddings_integers_which_lie_there_once(tmp_path) -> None:
    ours, written = exported(small("llama", True), "w4-g32+emb4", tmp_path)
    (tmp_path / "untied").mkdir()
    _, twice = exported(small("llama", False), "w4-g32+emb4", tmp_path / "untied")
    rows, features = ours.model.config.vocab_size, ours.model.config.hidden_size
    stored = rows * (features // 2 + features // 32 * 2 + features // 64)  # codes, scales, zero points
    saved = (twice.path / "model.onnx.data").stat().st_size - (written.path / "model.onnx.data").stat().st_size
    assert saved == stored


def test_the_numbers_in_the_file_are_the_checkpoints(tmp_path) -> None:
    """Read by the description of MatMulNBits: low nibbles first, (code - zero point) * scale."""
    import onnx
    from onnx import numpy_helper

    ours, written = exported(small("llama", True), "w4-g32+emb4", tmp_path)
    graph = onnx.load(written.path / "model.onnx").graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    layer = ours.model.model.layers[1].mlp.down_proj
    assert isinstance(layer, IntegerLinear)
    name = "model.layers.1.mlp.down_proj.MatMul"

    def nibbles(values: np.ndarray) -> np.ndarray:
        return np.stack((values & 15, values >> 4), -1).reshape(*values.shape[:-1], -1).astype(np.float64)

    codes, zeros = nibbles(stored[f"{name}.codes"]), nibbles(stored[f"{name}.zero_points"])
    assert stored[f"{name}.stored_scale"].dtype == np.float16
    real = (codes - zeros[..., None]) * stored[f"{name}.stored_scale"].astype(np.float64)
    assert np.array_equal(real.reshape(64, 128), layer.dequantized_weight().double().numpy())


def test_every_file_of_the_folder_has_its_sha256_and_counts(tmp_path) -> None:
    ours, written = exported(small("phi", True), "w4-g32+emb4", tmp_path)
    listed = json.loads((written.path / MARKER).read_text())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written.path.iterdir()}
    assert found.pop(MARKER) and found == listed["sha256"]
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= set(found)
    assert written.size_bytes == sum(path.stat().st_size for path in written.path.iterdir())
    assert written.sha256 == found["model.onnx.data"]
    text = "The river rose 42 cm."
    assert models.load_tokenizer(str(written.path))(text)["input_ids"] == ours.tokenizer(text)["input_ids"]


def test_the_builder_does_not_have_other_libraries_print_what_they_do(tmp_path) -> None:
    program = "; ".join(
        [
            "import logging",
            "from edgequant.export.onnx import graph",
            "graph._builder('llama')",
            "import onnxruntime.quantization.matmul_nbits_quantizer",  # which says so when it is first imported
            "print(logging.root.handlers, logging.root.level)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "30"]


def test_onnxruntime_genai_generates_what_we_do(tmp_path) -> None:
    import onnxruntime_genai

    ours, written = exported(small("gemma3", True), "w4-g32+emb4", tmp_path)
    model = onnxruntime_genai.Model(str(written.path))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=40, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens([5, 6, 7, 8])
    for _ in range(24):
        generator.generate_next_token()
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = ours.model.generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False)[0].tolist()
    assert list(generator.get_sequence(0)) == expected


def test_parity_reads_no_more_than_the_models_context(tmp_path) -> None:
    from edgequant.export.parity import export_parity

    ours, written = exported(small("llama", True, max_position_embeddings=48), "w4-g32+emb4", tmp_path)
    text = "\n".join(TEXT)
    assert len(ours.tokenizer(text)["input_ids"]) > 48
    assert export_parity(ours.model, ours.tokenizer, written.path, text)["parity/max_logit_error"] < 1e-4


def test_what_onnx_runtime_refuses_is_told_in_one_line(tmp_path) -> None:
    from edgequant.export.onnx.reader import read_onnx

    _, written = exported(small("llama", True, max_position_embeddings=48), "w4-g32+emb4", tmp_path)
    with pytest.raises(UserError, match=r"model\.onnx could not read 60 tokens in ONNX Runtime .*context") as refusal:
        read_onnx(written.path).model(input_ids=torch.ones(1, 60, dtype=torch.long))
    assert "\n" not in str(refusal.value)
    (written.path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"model\.onnx could not be loaded in ONNX Runtime .*export it again"):
        read_onnx(written.path)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("q4_1", "a real minimum for each group"),
        ("w8a8-static", "fixed ranges of inputs"),
        ("w4-g24", "groups of 24: they must be multiples of 16"),
        ("w4-g8+emb4", "groups of 8"),
        ("bnb-nf4", "bitsandbytes' data types"),
    ],
)
def test_a_scheme_that_it_cannot_hold_is_refused_by_name(scheme, message) -> None:
    with pytest.raises(UserError, match=f"scheme {scheme.replace('+', '.')} cannot be written as onnx.*{message}"):
        check_scheme(parse_scheme(scheme))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("llama", {"head_dim": 20}, "head_dim for onnx must be a multiple of 8, got 20"),
        ("llama", {"hidden_act": "tanh"}, "hidden_act for onnx must be silu .* got 'tanh'"),
        ("llama", {"rope_parameters": DYNAMIC}, "rope_parameters.rope_type for onnx must be default .* got 'dynamic'"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm for onnx must be False"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention for onnx must be False"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping for onnx must be None"),
    ],
)  # fmt: skip
def test_a_model_that_the_graph_would_compute_otherwise_is_refused_by_name(kind, values, message) -> None:
    with pytest.raises(UserError, match=message):
        check_configuration(small(kind, True, **values).model.config)


def test_nothing_is_written_of_what_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="w8a8-static cannot be written as onnx"):
        exported(small("llama", True), "w8a8-static", tmp_path)
    assert not (tmp_path / "onnx").exists()


def test_without_the_packages_the_message_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(library, "PACKAGES", {"onnxruntime-genai-that-is-not-here": "1.0"})
    with pytest.raises(
        UserError, match=r"onnxruntime-genai-that-is-not-here is not installed: pip install onnxruntime"
    ):
        exported(small("llama", True), "w4-g32", tmp_path)
