"""A GGUF file of another program is read as its own fields say, or refused naming what was not understood."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import DROP, rewritten, tensor
from small_models import TEXT, small

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.gguf.write import write_gguf
from edgequant.models.gguf.rope import llama3_parameters

NAMES = ("llama", "qwen2", "phi", "gemma3")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    for name in NAMES:
        write_gguf(small(name), folder / f"{name}.gguf", "f32")
    return {name: folder / f"{name}.gguf" for name in NAMES}


def load(file: Path) -> Any:
    return models.load(str(file), dtype="float32", device="cpu")


def logits(loaded: Any, text: str = TEXT[0]) -> torch.Tensor:
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return loaded.model(ids).logits


def equal(one: Any, other: Any) -> bool:
    return bool(torch.allclose(logits(one), logits(other), rtol=0, atol=1e-5))


@pytest.mark.parametrize(
    ("name", "fields", "config"),
    [
        ("llama", {"llama.rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ("llama", {"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ("llama", {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {"rope_type": "default"}),
        ("llama", {"llama.rope.scaling.factor": 0.0}, {"rope_type": "default"}),
        (
            "qwen2",
            {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0,
             "qwen2.rope.scaling.original_context_length": 64, "qwen2.rope.scaling.yarn_beta_fast": 8.0,
             "qwen2.rope.scaling.attn_factor": 2.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0,
             "attention_factor": 2.0 * (0.1 * math.log(4.0) + 1.0)},
        ),
    ],
)  # fmt: skip
def test_the_way_of_scaling_is_that_of_the_fields(name, fields, config, files, tmp_path) -> None:
    loaded = load(rewritten(files[name], tmp_path / "m.gguf", fields))
    found = loaded.model.config.rope_parameters
    assert {key: found[key] for key in config} == config
    expected = small(name, rope_parameters={"rope_theta": 10_000.0, **config})
    assert equal(loaded, expected)


def test_llama_3s_own_divisors_become_llama_3s_parameters() -> None:
    """Computed here as Meta's reference code does, for the heads and bases of Llama 3.1 and 3.2."""
    for size, factor in ((128, 8.0), (64, 32.0)):
        frequencies = 500_000.0 ** (-np.arange(0, size, 2) / size)
        scaled = []
        for frequency in frequencies:
            wavelength = 2 * math.pi / frequency
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            between = (1 - smooth) * frequency / factor + smooth * frequency
            scaled.append(frequency if wavelength < 2048 else frequency / factor if wavelength > 8192 else between)
        divisors = (frequencies / np.array(scaled)).astype(np.float32).astype(np.float64)
        assert llama3_parameters(divisors, frequencies) == {
            "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
        }  # fmt: skip


def test_any_other_divisors_are_applied_as_they_are(files, tmp_path) -> None:
    divisors = np.array([1.0, 3.0, 2.0, 5.0, 1.5, 7.0, 1.0, 9.0])
    loaded = load(rewritten(files["llama"], tmp_path / "m.gguf", tensors={"rope_freqs.weight": divisors}))
    plain = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(loaded.model.model.rotary_emb.inv_freq.numpy(), plain / divisors, rtol=1e-5)
    assert loaded.model.model.rotary_emb.attention_scaling == 1.0


def test_longrope_takes_its_factors_from_the_tensors(files, tmp_path) -> None:
    short, long = np.linspace(1, 2, 8), np.linspace(2, 9, 8)
    fields = {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.original_context_length": 64,
              "llama.rope.scaling.attn_factor": 1.2}  # fmt: skip
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    loaded = load(rewritten(files["llama"], tmp_path / "m.gguf", fields, tensors))
    plain = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
    rotary = loaded.model.model.rotary_emb
    np.testing.assert_allclose(rotary.inv_freq.numpy(), plain / short, rtol=1e-5)
    assert rotary.attention_scaling == pytest.approx(1.2)
    logits(loaded, "a " * 90)  # longer than the window of before
    np.testing.assert_allclose(rotary.inv_freq.numpy(), plain / long, rtol=1e-5)


def test_gemma_3_without_a_pattern_has_a_full_layer_every_six_and_a_number_is_a_period(files, tmp_path) -> None:
    kinds = load(files["gemma3"]).model.config.layer_types
    assert [kind == "full_attention" for kind in kinds] == [False] * 5 + [True, False]
    period = rewritten(files["gemma3"], tmp_path / "m.gguf", {"gemma3.attention.sliding_window_pattern": 3})
    assert equal(load(period), small("gemma3", sliding_window_pattern=3))


def test_phi_with_queries_keys_and_values_in_one_matrix_is_the_same_model(files, tmp_path) -> None:
    changed: dict[str, Any] = {}
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [f"blk.{layer}.attn_{part}.{kind}" for part in "qkv"]
            changed[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate([tensor(files["phi"], one) for one in parts])
            changed |= dict.fromkeys(parts, DROP)
    assert equal(load(rewritten(files["phi"], tmp_path / "m.gguf", tensors=changed)), load(files["phi"]))


def test_some_biases_of_the_attention_are_kept_and_the_others_are_zero(files, tmp_path) -> None:
    bias = np.linspace(-1, 1, 32)
    loaded = load(rewritten(files["llama"], tmp_path / "m.gguf", tensors={"blk.1.attn_v.bias": bias}))
    expected = small("llama", attention_bias=True)
    expected.model.load_state_dict(load(files["llama"]).model.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in expected.model.named_parameters():
            if name.endswith("_proj.bias"):
                parameter.zero_()
        expected.model.model.layers[1].self_attn.v_proj.bias.copy_(torch.from_numpy(bias))
    assert equal(loaded, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.expert_count": 0, "llama.attention.causal": True, "llama.rope.scaling.finetuned": False},
        {"llama.attention.sliding_window": 256, "general.url": "https://example.org", "quantize.imatrix.chunks": 3},
        {"llama.attention.head_count_kv": [2, 2], "llama.vocab_size": DROP, "llama.rope.freq_base": DROP},
        {"tokenizer.ggml.seperator_token_id": 0xFFFFFFFF, "llama.tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_fields_that_change_nothing_are_no_reason_to_refuse(fields, files, tmp_path) -> None:
    assert equal(load(rewritten(files["llama"], tmp_path / "m.gguf", fields)), load(files["llama"]))


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        ("llama", {"llama.attn_logit_softcapping": 30.0}, r"llama\.attn_logit_softcapping = 30\.0"),
        ("qwen2", {"qwen2.final_logit_softcapping": 30.0}, r"qwen2\.final_logit_softcapping"),
        ("llama", {"llama.attention.sliding_window": 16}, r"llama\.attention\.sliding_window = 16"),
        ("llama", {"llama.expert_count": 8}, r"llama\.expert_count = 8"),
        ("llama", {"llama.logit_scale": 0.5}, r"llama\.logit_scale"),
        ("llama", {"llama.something.new": "x"}, r"llama\.something\.new = 'x'"),
        ("llama", {"llama.rope.dimension_count": 8}, "rope.dimension_count must be the head's 16"),
        ("llama", {"llama.attention.value_length": 32}, "keys of 16 features with values of 32"),
        ("llama", {"llama.attention.head_count_kv": [2, 4]}, "differs from layer to layer"),
        ("llama", {"llama.block_count": DROP}, r"llama\.block_count not found"),
        ("llama", {"llama.block_count": 3}, r"tensor blk\.2\.\S+ not found"),
        ("llama", {"llama.block_count": 1}, r"tensor blk\.1\.\S+ has no place"),
        ("llama", {"llama.attention.head_count_kv": 4}, r"attn_k\.weight must have shape \[64, 64\], got \[32, 64\]"),
        ("llama", {"llama.rope.scaling.type": "ntk"}, r"rope\.scaling\.type must be none, linear, yarn or longrope"),
        ("llama", {"llama.rope.scaling.type": "longrope"}, "without tensor rope_factors_short"),
        ("llama", {"llama.rope.scaling.attn_factor": 2.0}, r"rope\.scaling\.attn_factor 2"),
        ("gemma3", {"gemma3.attention.sliding_window": DROP}, r"gemma3\.attention\.sliding_window not found"),
        ("gemma3", {"gemma3.attention.sliding_window_pattern": [True, False]}, "must have 7 values"),
        ("llama", {"general.architecture": "mamba"}, "architecture must be one of llama, .*, got 'mamba'"),
        ("llama", {"general.type": "mmproj"}, "general.type must be 'model', got 'mmproj'"),
        ("llama", {"split.count": 3, "split.no": 0}, "part 1 of 3 of a split file; join them with"),
        ("qwen2", {"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre must be one of .*, got 'tekken'"),
        ("qwen2", {"tokenizer.ggml.pre": DROP}, "tokenizer.ggml.pre must be one of .*, got None"),
        ("qwen2", {"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model must be gpt2 or llama, got 'bert'"),
        ("qwen2", {"tokenizer.ggml.tokens": DROP}, "tokenizer.ggml.tokens not found"),
        ("qwen2", {"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens for an embedding of"),
        ("qwen2", {"tokenizer.ggml.eos_token_id": 99_999}, "eos_token_id must be below the vocabulary's"),
        ("qwen2", {"tokenizer.ggml.merges": ["not there"]}, "merge 'not there' is of tokens that are not in"),
        ("llama", {"tokenizer.ggml.scores": DROP}, "tokenizer.ggml.scores not found"),
        ("llama", {"tokenizer.ggml.token_type": [1, 1]}, "tokenizer.ggml.token_type must have"),
    ],
)
def test_what_the_reader_does_not_understand_is_named_in_one_line(name, fields, named, files, tmp_path) -> None:
    changed = rewritten(files[name], tmp_path / "m.gguf", fields)
    with pytest.raises(UserError, match=named) as error:
        models.check_available(str(changed))
    assert "\n" not in str(error.value) and "m.gguf" in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.block_count": 4_000_000_000},
        {"llama.attention.head_count": 0},
        {"llama.embedding_length": "many"},
        {"llama.rope.freq_base": [1.0, 2.0]},
        {"tokenizer.ggml.merges": 7, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"},
        {"tokenizer.ggml.token_type": 3},
        {"llama.attention.sliding_window": [1, 2]},
        {"llama.context_length": 0},
    ],
)
def test_fields_that_make_no_model_are_refused_in_one_line(fields, files, tmp_path) -> None:
    with pytest.raises(UserError, match=r"m\.gguf' could not be read") as error:
        models.check_available(str(rewritten(files["llama"], tmp_path / "m.gguf", fields)))
    assert "\n" not in str(error.value)


def test_a_weight_that_is_not_a_number_is_named(files, tmp_path) -> None:
    values = tensor(files["qwen2"], "blk.1.attn_v.weight")
    values[0, 0] = np.nan
    broken = rewritten(files["qwen2"], tmp_path / "m.gguf", tensors={"blk.1.attn_v.weight": values})
    with pytest.raises(UserError, match=r"blk\.1\.attn_v\.weight holds numbers"):
        load(broken)


def test_a_tensor_too_many_is_named(files, tmp_path) -> None:
    for name in ("blk.0.attn_q_norm.weight", "rope_factors_long.weight"):
        extra = rewritten(files["qwen2"], tmp_path / "m.gguf", tensors={name: np.ones(16)})
        with pytest.raises(UserError, match=name):
            models.check_available(str(extra))


def test_a_type_that_cannot_be_dequantized_is_named(files, tmp_path) -> None:
    data = np.zeros(64, dtype=np.int32)
    stored = [("blk.0.attn_norm.weight", data, gguf.GGMLQuantizationType.I32)]
    file = rewritten(files["qwen2"], tmp_path / "m.gguf", tensors={"blk.0.attn_norm.weight": DROP}, raw=stored)
    with pytest.raises(UserError, match=r"blk\.0\.attn_norm\.weight is stored as I32"):
        models.check_available(str(file))


@pytest.mark.parametrize("kind", ["Q5_K", "IQ4_XS", "TQ1_0"])
def test_types_of_llama_cpp_that_the_gguf_package_reads_are_read(kind, files, tmp_path) -> None:
    """Blocks of 256: two rows of the MLP's output matrix together, which no test checks by value elsewhere."""
    qtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    file = tmp_path / "wide.gguf"
    write_gguf(small("qwen2", intermediate_size=block), file, "f32")
    data = np.zeros((64, size), dtype=np.uint8)
    name = "blk.0.ffn_down.weight"
    loaded = load(rewritten(file, tmp_path / "m.gguf", tensors={name: DROP}, raw=[(name, data, qtype)]))
    expected = gguf.quants.dequantize(data, qtype)
    assert np.array_equal(loaded.model.model.layers[0].mlp.down_proj.weight.detach().numpy(), expected)


def test_every_cut_is_refused_in_one_line(files, tmp_path) -> None:
    whole = files["qwen2"].read_bytes()
    for at in [0, 3, 4, 7, 8, 20, *range(24, len(whole), len(whole) // 40), len(whole) - 1]:
        (tmp_path / "m.gguf").write_bytes(whole[:at])
        with pytest.raises(UserError, match=r"m\.gguf' could not be read") as error:
            models.check_available(str(tmp_path / "m.gguf"))
        assert "\n" not in str(error.value)


def test_a_flipped_bit_in_the_header_is_refused_or_changes_no_count(files, tmp_path) -> None:
    """A damaged length must not be believed: it would be waited for."""
    whole = bytearray(files["llama"].read_bytes())
    for at in (8 + 7, 16 + 7, 24 + 7, 40, 60, 200, 1000):
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        (tmp_path / "m.gguf").write_bytes(damaged)
        try:
            models.check_available(str(tmp_path / "m.gguf"))
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("start", "named"),
    [
        (b"PK\x03\x04\x00\x00\x00\x00", "must begin with b'GGUF'"),
        (b"GGUF\x01\x00\x00\x00", "version must be 2 or 3, got 1"),
        (b"GGUF\x00\x00\x00\x03", "big-endian"),
    ],
)
def test_another_kind_of_file_is_told_apart(start, named, files, tmp_path) -> None:
    (tmp_path / "m.gguf").write_bytes(start + files["qwen2"].read_bytes()[8:])
    with pytest.raises(UserError, match=named):
        models.check_available(str(tmp_path / "m.gguf"))


def test_the_tokenizer_alone_is_the_same(files) -> None:
    for name in NAMES:
        alone, whole = models.load_tokenizer(str(files[name])), load(files[name]).tokenizer
        assert alone(TEXT[0])["input_ids"] == whole(TEXT[0])["input_ids"]
        assert alone.eos_token_id == whole.eos_token_id is not None
