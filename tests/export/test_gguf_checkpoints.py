"""A quantised checkpoint leaves as the integers that it holds."""

from __future__ import annotations

import copy

import gguf
import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, TEXT
from transformers import AutoModelForCausalLM

from edgequant.export.choice import Target, copies_integers
from edgequant.export.gguf.write import write_gguf
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme


def quantized(loaded, scheme: str):
    model = copy.deepcopy(loaded.model)
    quantize(model, parse_scheme(scheme))
    return loaded._replace(model=model)


def tensors_of(path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("format_name", ["q8_0", "q4_0", "q4_1"])
def test_llama_cpp_schemes_leave_bit_for_bit(format_name, tmp_path) -> None:
    """The bytes are those that the gguf package makes of the original weights."""
    loaded = ARCHITECTURES["qwen2"](True)
    write_gguf(quantized(loaded, format_name), tmp_path / "m.gguf", format_name)
    kind = gguf.GGMLQuantizationType[format_name.upper()]
    for layer, block in enumerate(loaded.model.model.layers):
        expected = gguf.quants.quantize(block.mlp.down_proj.weight.detach().numpy(), kind)
        assert np.array_equal(tensors_of(tmp_path / "m.gguf")[f"blk.{layer}.ffn_down.weight"].data, expected)


def test_integers_follow_their_rows_where_rows_are_reordered(tmp_path) -> None:
    """Reordering Llama's q and k rows before or after quantising gives the same bytes: blocks lie along the rows."""
    loaded = ARCHITECTURES["llama"](False)
    write_gguf(loaded, tmp_path / "plain.gguf", "q8_0")
    write_gguf(quantized(loaded, "q8_0"), tmp_path / "packed.gguf", "q8_0")
    plain, packed = tensors_of(tmp_path / "plain.gguf"), tensors_of(tmp_path / "packed.gguf")
    for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight"):
        assert np.array_equal(plain[name].data, packed[name].data)


@pytest.mark.parametrize("scheme", ["w4-g32+emb4", "w4-g64", "w4a8-g32+emb4"])
def test_four_bit_affine_groups_become_q4_1_with_the_same_integers(scheme, tmp_path) -> None:
    loaded = quantized(ARCHITECTURES["qwen2"](True), scheme)
    file = write_gguf(loaded, tmp_path / "m.gguf", "q4_1")
    layer = loaded.model.model.layers[0].mlp.up_proj
    stored = tensors_of(tmp_path / "m.gguf")["blk.0.ffn_up.weight"]
    assert stored.tensor_type.name == "Q4_1"
    exact = layer.dequantized_weight().numpy()
    scales = layer.packed.unpacked().scale.numpy()
    # the offset is at most 15 scales and is rounded to 11 bits: 15 / 2048 of a step
    assert np.abs(gguf.quants.dequantize(stored.data, stored.tensor_type) - exact).max() < scales.max() * 15 / 2048
    assert any("keep the checkpoint's integers" in note for note in file.notes)


@pytest.mark.parametrize(
    ("scheme", "format_name"),
    [
        ("w4-g32-sym+emb4", "q4_0"),
        ("w4a8-g64-sym", "q4_0"),
        ("w3-g32-sym", "q4_0"),
        ("w2-g64-sym+emb2", "q4_0"),
        ("w1.58-g64", "q4_0"),
        ("w8-g32-sym", "q8_0"),
    ],
)
def test_symmetric_groups_leave_exactly(scheme, format_name, tmp_path) -> None:
    loaded = quantized(ARCHITECTURES["qwen2"](True), scheme)
    file = write_gguf(loaded, tmp_path / "m.gguf", format_name)
    layer, stored = loaded.model.model.layers[0].mlp.up_proj, tensors_of(tmp_path / "m.gguf")["blk.0.ffn_up.weight"]
    assert stored.tensor_type.name == format_name.upper()
    found = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert np.array_equal(found, layer.dequantized_weight().numpy())
    assert any("keep the checkpoint's integers" in note for note in file.notes)
    assert tensors_of(tmp_path / "m.gguf")["token_embd.weight"].tensor_type.name == (
        "Q4_0" if "emb" in scheme else "Q8_0"
    )


def test_a_tied_four_bit_embedding_keeps_its_integers_and_is_written_once(tmp_path) -> None:
    write_gguf(quantized(ARCHITECTURES["qwen2"](True), "w4-g32+emb4"), tmp_path / "m.gguf", "q4_1")
    tensors = tensors_of(tmp_path / "m.gguf")
    assert tensors["token_embd.weight"].tensor_type.name == "Q4_1" and "output.weight" not in tensors


def test_the_file_computes_what_the_checkpoint_computes(tmp_path) -> None:
    loaded = quantized(ARCHITECTURES["llama"](True), "q4_0+emb8")
    write_gguf(loaded, tmp_path / "m.gguf", Target("q4_0", "f32"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.tensor([loaded.tokenizer(TEXT[0])["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, loaded.model(ids).logits, rtol=0, atol=1e-5)


def test_a_scheme_that_no_format_holds_is_encoded_again_and_a_note_says_so(tmp_path) -> None:
    file = write_gguf(quantized(ARCHITECTURES["qwen2"](True), "w3-g32"), tmp_path / "m.gguf", "q4_1")
    assert any("encoded again as q4_1" in note for note in file.notes)


def test_a_note_says_that_activations_are_quantized_otherwise(tmp_path) -> None:
    file = write_gguf(quantized(ARCHITECTURES["qwen2"](True), "w8a8"), tmp_path / "m.gguf")
    assert any("activations" in note for note in file.notes)


def test_which_integers_a_format_holds() -> None:
    def fits(scheme: str, format_name: str) -> bool:
        weight = parse_scheme(scheme).weight
        assert weight is not None
        return copies_integers(weight, format_name)

    assert fits("q8_0", "q8_0") and fits("q4_0", "q4_0") and fits("w4-g128", "q4_1")
    assert fits("w4-g32-sym", "q4_0") and fits("w4-g64-sym", "q8_0") and fits("w8-g32-sym", "q8_0")
    assert fits("w1.58-g64", "q4_0") and fits("w2-g64-sym", "q4_0") and fits("w3-g64-sym", "q4_0")
    assert not fits("w8-g32-sym", "q4_0") and not fits("w4-sym", "q4_0") and not fits("w4-g16-sym", "q4_0")
    assert not fits("w4-g32-sym", "q4_1") and not fits("w4-g32", "q4_0")
    assert not fits("q4_0", "q4_1") and not fits("w8", "q8_0") and not fits("w3-g64", "q4_1")
