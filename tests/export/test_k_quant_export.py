"""K-quants in a GGUF file: a checkpoint's own integers, bit for bit, for two decoders and for llama.cpp."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from k_quants_of_llama_cpp import KINDS
from llama_cpp_reader import needs_llama_cpp, read_by_llama_cpp
from small_models import LARGE_HEADS, TEXT, small
from test_llama_cpp_layouts import in_llama_cpps_order, written_name

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.choice import Target, choose_target, copies_integers
from edgequant.export.formats import check_expressible, fitting_format
from edgequant.export.gguf.write import gguf_size, write_gguf
from edgequant.export.onnx.expressible import check_scheme
from edgequant.quantization.layers.convert import convert, prepare
from edgequant.quantization.layers.integer import integer_layers
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme

WIDE = {
    "qwen2": {"hidden_size": 256, "intermediate_size": 512},
    "llama": {"hidden_size": 256, "intermediate_size": 768},
    "phi": {"hidden_size": 256, "intermediate_size": 512},
    "gemma3": {"hidden_size": 256, "intermediate_size": 512, **LARGE_HEADS},
}
SCHEMES = ["q4_k+embq6_k", "q6_k+embq4_k", "q4_k+embq4_0"]


def made(architecture: str, scheme: str, tied: bool = True, **config: Any) -> Any:
    loaded = small(architecture, tied, **(WIDE[architecture] | config))
    quantize(loaded.model, parse_scheme(scheme), method="mse_clip")
    return loaded


def trained(loaded: Any, scheme: str) -> None:
    """Three steps of QAT with learned scales, converted."""
    prepare(loaded.model, parse_scheme(scheme), learnable_scales=True)
    optimizer = torch.optim.SGD(loaded.model.parameters(), lr=0.05)
    tokens = torch.tensor([loaded.tokenizer("\n".join(TEXT))["input_ids"][:32]])
    for _ in range(3):
        optimizer.zero_grad()
        loaded.model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    convert(loaded.model)


def stored_tensors(file: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def check_tensors(loaded: Any, file: Any, layout_of: Any) -> None:
    """Layouts as wanted, and in each the checkpoint's own numbers, bit for bit."""
    stored = stored_tensors(file)
    for layer, module in integer_layers(loaded.model).items():
        name = written_name(layer)
        if module.is_tied and name not in stored:
            continue
        tensor, layout = stored[name], layout_of(name)
        assert tensor.tensor_type.name.lower() == layout, name
        expected = in_llama_cpps_order(module.dequantized_weight().numpy(), layer, loaded.model.config)
        assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), expected), name
        if layout in KINDS:
            codes, factors = fields_of(tensor.data, layout)
            packed = module.packed
            ours = packed.unpacked().codes.reshape(expected.shape).numpy()
            assert np.array_equal(codes, in_llama_cpps_order(ours, layer, loaded.model.config)), name
            halves = in_llama_cpps_order(packed.scale.numpy(), layer, loaded.model.config)
            assert np.array_equal(factors.view(np.uint16), halves.view(np.uint16)), name


def fields_of(stored: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, features] and float16 factors of scales [rows, super-blocks], a byte at a time, ggml-quants.c."""
    rows = len(stored)
    blocks = stored.reshape(-1, {"q4_k": 144, "q6_k": 210}[layout])
    codes = np.zeros((len(blocks), 256), dtype=np.int8)
    for value in range(256):
        if layout == "q4_k":  # of 64 values, 32 in low halves, then 32 in high ones
            byte = blocks[:, 16 + value // 64 * 32 + value % 32]
            codes[:, value] = ((byte >> 4) if value % 64 >= 32 else (byte & 0xF)).astype(np.int8) - 8
        else:  # of 128 values, four bits in 64 bytes and two in 32
            half, quarter, place = value // 128, value % 128 // 32, value % 32
            byte = blocks[:, half * 64 + quarter % 2 * 32 + place]
            low = (byte >> 4) if quarter >= 2 else (byte & 0xF)
            high = (blocks[:, 128 + half * 32 + place] >> (2 * quarter)) & 3
            codes[:, value] = (low | (high << 4)).astype(np.int8) - 32
    factor = blocks[:, :2] if layout == "q4_k" else blocks[:, -2:]
    return codes.reshape(rows, -1), np.ascontiguousarray(factor).view(np.float16).reshape(rows, -1)


@pytest.mark.long
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", WIDE)
def test_integers_scales_and_weights_are_the_checkpoints_own(architecture, scheme, tmp_path) -> None:
    loaded = made(architecture, scheme)
    file = write_gguf(loaded, tmp_path / "m.gguf", choose_target(parse_scheme(scheme)))
    linears, _, embedding = scheme.partition("+emb")
    ends = ("token_embd.weight", "output.weight")
    check_tensors(loaded, file.path, lambda name: embedding if name in ends else linears)
    assert not any("again" in note for note in file.notes)
    assert gguf_size(loaded, choose_target(parse_scheme(scheme))) == (file.path.stat().st_size, file.parameters)
    read = models.load(str(file.path), dtype="float32", device="cpu").model
    tokens = torch.tensor([loaded.tokenizer("\n".join(TEXT))["input_ids"][:40]])
    with torch.no_grad():
        torch.testing.assert_close(
            read(input_ids=tokens).logits, loaded.model(input_ids=tokens).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("scheme", ["q4_k+embq6_k", "q6_k+embq6_k"])
def test_a_model_trained_with_quantisation_keeps_its_integers(scheme, tmp_path) -> None:
    loaded = small("llama", True, **WIDE["llama"])
    trained(loaded, scheme)
    file = write_gguf(loaded, tmp_path / "m.gguf", choose_target(parse_scheme(scheme)))
    linears, _, embedding = scheme.partition("+emb")
    check_tensors(loaded, file.path, lambda name: embedding if name == "token_embd.weight" else linears)


def test_matrices_of_other_widths_have_the_format_that_took_its_place(tmp_path) -> None:
    """SmolLM2's widths over three: 192 is no multiple of 256, 512 is."""
    loaded = small("llama", True, hidden_size=192, intermediate_size=512, num_attention_heads=3, num_key_value_heads=1)
    quantize(loaded.model, parse_scheme("q4_k+embq6_k"))
    for target in (choose_target(parse_scheme("q4_k+embq6_k")), Target("q4_k")):
        file = write_gguf(loaded, tmp_path / "m.gguf", target)
        check_tensors(
            loaded, file.path,
            lambda name: "q8_0" if name == "token_embd.weight" else "q4_k" if "ffn_down" in name else "q4_1",
        )  # fmt: skip
        assert any("15 of 15 quantised matrices keep" in note for note in file.notes)
        assert any(note.startswith("not q4_k but q4_1 and q8_0: token_embd.weight") for note in file.notes)


@pytest.mark.parametrize("layout", KINDS)
def test_a_model_in_floating_point_is_rounded_as_the_scheme_would_round_it(layout, tmp_path) -> None:
    plain, loaded = small("qwen2", True, **WIDE["qwen2"]), made("qwen2", f"{layout}+emb{layout}")
    file = write_gguf(plain, tmp_path / "m.gguf", Target(layout, layout))
    check_tensors(loaded, file.path, lambda _: layout)


@needs_llama_cpp
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_llama_cpp_computes_the_checkpoints_logits_but_for_its_own_activations(architecture, tmp_path) -> None:
    """It rounds activations to 8 bits: no further from the checkpoint than with q8_0, twice as far at most where its
    blocks of them are 256 long instead of 32. The same weights written as f32 say what it computes without.
    """
    distances = {}
    for scheme in ("q8_0+embq8_0", "q4_k+embq6_k", "q6_k+embq6_k"):
        loaded = made(architecture, scheme)
        ids = list(loaded.tokenizer("\n".join(TEXT[:2]))["input_ids"][:50])
        with torch.no_grad():
            expected = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()[[4, 29, 49]]
        for kind, target in (("f32", "f32"), ("own", choose_target(parse_scheme(scheme)))):
            write_gguf(loaded, tmp_path / "m.gguf", target)
            found, _ = read_by_llama_cpp(tmp_path / "m.gguf", ids, (5, 30, 50), loaded.model.config.vocab_size)
            distances[scheme, kind] = found - expected
    assert all(np.abs(found).max() < 1e-3 for (_, kind), found in distances.items() if kind == "f32")
    rounded = {name: float(np.square(one).mean() ** 0.5) for (name, kind), one in distances.items() if kind == "own"}
    assert max(rounded.values()) < 2 * rounded["q8_0+embq8_0"], rounded


def test_no_other_folder_or_format_takes_them() -> None:
    with pytest.raises(UserError, match=r"scheme q4_k cannot be written as compressed-tensors.* scales of scales"):
        check_expressible(parse_scheme("q4_k"))
    with pytest.raises(UserError, match="scheme q6_k cannot be written as compressed-tensors"):
        check_expressible(parse_scheme("q6_k"))
    for scheme in ("q4_k", "q6_k", "q8_0+embq6_k"):
        with pytest.raises(UserError, match=r"cannot be written as onnx.* scales of scales"):
            check_scheme(parse_scheme(scheme))
    for spec in (parse_scheme("q4_k").weight, parse_scheme("q6_k").weight):
        assert spec is not None
        assert [name for name in ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k") if copies_integers(spec, name)] == [
            spec.layout
        ]


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("q4_k", 2048, "q4_k"), ("q4_k", 576, "q4_1"), ("q6_k", 896, "q8_0"), ("q6_k", 1536, "q6_k"),
        ("q4_k", 100, "f16"), ("q4_0", 576, "q4_0"), ("q4_0", 100, "f16"), ("f32", 100, "f32"), ("bf16", 3, "bf16"),
    ],
)  # fmt: skip
def test_a_format_fits_the_width_of_a_matrix(name, width, expected) -> None:
    assert fitting_format(name, width) == expected


def test_numbers_that_float16_factors_cannot_hold_are_refused(tmp_path) -> None:
    loaded = small("qwen2", True, **WIDE["qwen2"])
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight[0, 0] = -5e6
    with pytest.raises(UserError, match=r"within 4,126,752 for format q4_k.*up_proj"):
        write_gguf(loaded, tmp_path / "m.gguf", "q4_k")
    assert not list(tmp_path.iterdir())
    write_gguf(loaded, tmp_path / "m.gguf", Target("q6_k", "q6_k"))
