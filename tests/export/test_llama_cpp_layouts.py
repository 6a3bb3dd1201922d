"""Schemes of llama.cpp's own layouts throughout, `q4_0+embq4_0` and its kind: the GGUF file is the checkpoint, bit for
bit, for the gguf package's decoder and for llama.cpp."""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llama_cpp_reader import needs_llama_cpp, read_by_llama_cpp
from small_models import ARCHITECTURES, TEXT

from edgequant.export.choice import choose_target
from edgequant.export.gguf.write import gguf_size, write_gguf
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme

SCHEMES = ["q4_0+embq4_0", "q8_0+embq8_0", "q4_1+embq4_1", "q4_0+embq8_0", "q8_0+embq4_0", "q4_1+embq4_0"]
NAMES = {
    r"model\.embed_tokens": "token_embd",
    r"lm_head": "output",
    r"model\.layers\.(\d+)\.self_attn\.(q|k|v)_proj": r"blk.\1.attn_\2",
    r"model\.layers\.(\d+)\.self_attn\.(o_proj|dense)": r"blk.\1.attn_output",
    r"model\.layers\.(\d+)\.mlp\.(up_proj|fc1)": r"blk.\1.ffn_up",
    r"model\.layers\.(\d+)\.mlp\.(down_proj|fc2)": r"blk.\1.ffn_down",
    r"model\.layers\.(\d+)\.mlp\.gate_proj": r"blk.\1.ffn_gate",
}  # of llama.cpp's convert_hf_to_gguf.py
SIZES = {"q8_0": 34, "q4_0": 18, "q4_1": 20}  # bytes of a block of 32, ggml-common.h


def written_name(layer: str) -> str:
    for pattern, name in NAMES.items():
        if re.fullmatch(pattern, layer):
            return re.sub(pattern, name, layer) + ".weight"
    raise KeyError(layer)


def in_llama_cpps_order(rows: np.ndarray, layer: str, config: Any) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, for q and k of Llama alone."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer.split(".")[-1])
    if config.model_type != "llama" or heads is None:
        return rows
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def made(architecture: str, scheme: str, tied: bool = True) -> Any:
    loaded = ARCHITECTURES[architecture](tied)
    quantize(loaded.model, parse_scheme(scheme), method="mse_clip")
    return loaded


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_integers_scales_and_weights_are_the_checkpoints_own(architecture, scheme, tmp_path) -> None:
    loaded = made(architecture, scheme)
    target = choose_target(parse_scheme(scheme))
    file = write_gguf(loaded, tmp_path / "m.gguf", target)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    linears, _, embedding = scheme.partition("+emb")
    signs = set()
    for layer, module in integer_layers(loaded.model).items():
        tensor, name = stored.get(written_name(layer)), written_name(layer)
        if tensor is None:
            assert name == "output.weight" and architecture != "phi"  # tied, and written once
            continue
        layout = embedding if name in ("token_embd.weight", "output.weight") else linears
        assert tensor.tensor_type.name == layout.upper(), name
        expected = in_llama_cpps_order(module.dequantized_weight().numpy(), layer, loaded.model.config)
        assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), expected), name
        blocks = tensor.data.reshape(len(expected), -1, SIZES[layout])
        scales = blocks[..., :2].copy().view(np.float16)[..., 0]
        ours = in_llama_cpps_order(module.packed.scale.numpy(), layer, loaded.model.config)
        assert np.array_equal(scales.view(np.uint16), ours.view(np.uint16)), name
        codes = blocks[..., 2:].view(np.int8) if layout == "q8_0" else nibbles(blocks[..., -16:])
        integers = module.packed.unpacked().codes.reshape(expected.shape).numpy()
        assert np.array_equal(codes.reshape(expected.shape), in_llama_cpps_order(integers, layer, loaded.model.config))
        signs |= {bool(negative) for negative in np.unique(scales < 0)} if layout == "q4_0" else set()
    assert signs in (set(), {True, False})  # q4_0's scales have both signs, as its search chose them
    assert not any("again" in note for note in file.notes)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """Low halves are the first 16 values, high ones the last; 8 stands for 0."""
    return np.concatenate((packed & 0xF, packed >> 4), -1).astype(np.int8) - 8


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme", ["q4_0+embq4_0", "w4-g32+emb4", "w3-g64", "q4_0+emb8"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_size_is_known_before_the_file_is_written(architecture, scheme, tied, tmp_path) -> None:
    loaded = made(architecture, scheme, tied)
    for target in (choose_target(parse_scheme(scheme), embedding_format="q8_0"), "q4_0", "f16", "bf16"):
        file = write_gguf(loaded, tmp_path / "m.gguf", target)
        assert gguf_size(loaded, target) == (file.path.stat().st_size, file.parameters)


@needs_llama_cpp
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llama_cpp_computes_the_checkpoints_logits_but_for_its_own_activations(architecture, tmp_path) -> None:
    """llama.cpp rounds activations to 8 bits in blocks of 32, which does a tenth of what 4-bit weights do."""
    floating, loaded = ARCHITECTURES[architecture](True), made(architecture, "q4_0+embq4_0")
    write_gguf(loaded, tmp_path / "m.gguf", choose_target(parse_scheme("q4_0+embq4_0")))
    ids = list(loaded.tokenizer("\n".join(TEXT[:2]))["input_ids"][:50])
    found, _ = read_by_llama_cpp(tmp_path / "m.gguf", ids, (5, 30, 50), loaded.model.config.vocab_size)

    @torch.no_grad()
    def distance(model: Any) -> float:
        return (
            np.square(found - model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()[[4, 29, 49]]).mean() ** 0.5
        )

    assert distance(loaded.model) < 0.1 * distance(floating.model)
