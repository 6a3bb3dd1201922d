"""An exported GGUF file computes what the model computes, in transformers' reader and in llama.cpp."""

from __future__ import annotations

import copy
from pathlib import Path

import gguf
import pytest
import torch
from library_versions import needs_transformers
from llama_cpp_reader import needs_llama_cpp, read_by_llama_cpp
from small_models import ARCHITECTURES, TEXT, small
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgequant.errors import UserError
from edgequant.export.choice import Target, choose_target
from edgequant.export.gguf.write import write_gguf
from edgequant.export.shipped import matrix_widths

READ_BY_TRANSFORMERS = ("qwen2", "llama", "gemma3")
PHI_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.final_layernorm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def rounded(model, kind: gguf.GGMLQuantizationType):
    """The model with every matrix quantised and dequantised where it stands: what the file should compute."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in {id(p): p for p in copied.parameters()}.values():
            if parameter.dim() > 1:
                encoded = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(encoded, kind).copy()))
    return copied


def read_back(path: Path):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def tensors_of(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
@pytest.mark.parametrize("format_name", ["q8_0", "q4_1"])
def test_transformers_reads_back_the_model_with_rounded_weights(name, tied, format_name, tmp_path) -> None:
    loaded = ARCHITECTURES[name](tied)
    write_gguf(loaded, tmp_path / "m.gguf", Target(format_name, format_name))
    ids = torch.tensor([loaded.tokenizer(TEXT[0])["input_ids"]])
    expected = logits(rounded(loaded.model, gguf.GGMLQuantizationType[format_name.upper()]), ids)
    torch.testing.assert_close(logits(read_back(tmp_path / "m.gguf"), ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_phi_reads_back_tensor_by_tensor(tied, tmp_path) -> None:
    """transformers has no reader for phi2: the tensors are put back by a table of this test's own."""
    loaded = ARCHITECTURES["phi"](tied)
    write_gguf(loaded, tmp_path / "m.gguf", "q8_0")
    state = {}
    for name, tensor in tensors_of(tmp_path / "m.gguf").items():
        *layer, part, kind = name.removeprefix("blk.").split(".")
        prefix = f"model.layers.{layer[0]}." if layer else ""
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape)))
        state[f"{prefix}{PHI_NAMES[part]}.{kind}"] = torch.from_numpy(values.copy())
    filled = copy.deepcopy(loaded.model)
    filled.load_state_dict(state)
    ids = torch.tensor([loaded.tokenizer(TEXT[0])["input_ids"]])
    expected = logits(rounded(loaded.model, gguf.GGMLQuantizationType.Q8_0), ids)
    torch.testing.assert_close(logits(filled, ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_the_tokenizer_reads_back_with_the_same_ids(name, tmp_path) -> None:
    needs_transformers("5.20", "read a GGUF file's tokenizer as it is written")
    loaded = ARCHITECTURES[name](True)
    write_gguf(loaded, tmp_path / "m.gguf")
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for line in TEXT[:2]:
        assert (
            again(line, add_special_tokens=False)["input_ids"]
            == loaded.tokenizer(line, add_special_tokens=False)["input_ids"]
        )
    assert again.eos_token_id == loaded.tokenizer.eos_token_id
    assert again.chat_template == loaded.tokenizer.chat_template


def test_tied_weights_are_written_once_and_untied_ones_twice(tmp_path) -> None:
    for tied in (True, False):
        file = write_gguf(ARCHITECTURES["qwen2"](tied), tmp_path / "m.gguf")
        assert ("output.weight" in tensors_of(file.path)) is not tied


def test_parameters_are_counted_once(tmp_path) -> None:
    for name, make in ARCHITECTURES.items():
        model = make(True)
        assert write_gguf(model, tmp_path / "m.gguf").parameters == model.model.num_parameters(), name


def test_norms_and_biases_stay_in_full_precision(tmp_path) -> None:
    write_gguf(ARCHITECTURES["phi"](True), tmp_path / "m.gguf", "q4_0")
    kinds = {tensor.tensor_type.name for tensor in tensors_of(tmp_path / "m.gguf").values() if len(tensor.shape) == 1}
    assert kinds == {"F32"}


def test_four_bit_formats_spend_eight_bits_on_the_embedding_unless_told_otherwise(tmp_path) -> None:
    model = ARCHITECTURES["qwen2"](True)
    write_gguf(model, tmp_path / "a.gguf", "q4_0")
    write_gguf(model, tmp_path / "b.gguf", Target("q4_0", "q4_0"))
    assert tensors_of(tmp_path / "a.gguf")["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors_of(tmp_path / "b.gguf")["token_embd.weight"].tensor_type.name == "Q4_0"


def test_q8_0_takes_eight_and_a_half_bits_per_weight(tmp_path) -> None:
    model = ARCHITECTURES["llama"](False)
    matrices = sum(p.numel() for p in model.model.parameters() if p.dim() > 1)
    write_gguf(model, tmp_path / "m.gguf")
    stored = sum(t.n_bytes for t in tensors_of(tmp_path / "m.gguf").values() if t.tensor_type.name == "Q8_0")
    assert stored == matrices * 34 / 32


def test_rows_that_no_block_fits_are_half_precision_and_a_note_says_so(tmp_path) -> None:
    loaded = small("qwen2", intermediate_size=80)
    file = write_gguf(loaded, tmp_path / "m.gguf")
    assert tensors_of(file.path)["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert any("blk.0.ffn_down.weight" in note for note in file.notes)


def test_a_format_that_no_row_fits_is_refused_before_anything_is_written(tmp_path) -> None:
    loaded = small("llama", hidden_size=80, intermediate_size=200, num_attention_heads=5, num_key_value_heads=1)
    for format_name in ("q4_0", "q8_0", "q4_k"):
        with pytest.raises(UserError, match=f"format {format_name} needs .* rows of 80, 200 alone.*use --format f16, "):
            write_gguf(loaded, tmp_path / "m.gguf", format_name)
    assert list(tmp_path.iterdir()) == []
    write_gguf(loaded, tmp_path / "m.gguf", "f16")


def test_auto_takes_half_precision_where_no_row_fits() -> None:
    chosen = choose_target(None).fitting([80, 80, 200])
    assert chosen.format == "f16"
    assert chosen.line(None) == "format: f16 (no block of 32 fits rows of 80, 200)"
    assert choose_target(None).fitting([80, 64]).format == "q8_0" == choose_target(None).fitting([]).format
    assert Target("bf16").fitting([80]) == Target("bf16") and Target("onnx").fitting([80]) == Target("onnx")


def test_matrices_that_become_half_precision_are_counted_before_the_file_is_written() -> None:
    loaded = small("qwen2", intermediate_size=80)
    widths = matrix_widths(loaded)
    assert len(widths) == 2 + 2 * 7  # embedding and head, and seven in each layer
    said = Target("q4_0").line(None, widths=widths)
    assert said == "format: q4_0; 2 of 16 matrices become f16: 32 does not divide rows of 80"
    assert Target("q4_0").line(None, widths=[64, 64]) == "format: q4_0"


def test_an_adapter_is_merged_before_it_is_written(tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    loaded = ARCHITECTURES["qwen2"](True)
    adapted = get_peft_model(
        loaded.model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    ids = torch.tensor([loaded.tokenizer(TEXT[0])["input_ids"]])
    expected = logits(adapted.eval(), ids)
    write_gguf(loaded._replace(model=adapted), tmp_path / "m.gguf", "f32")
    torch.testing.assert_close(logits(read_back(tmp_path / "m.gguf"), ids), expected, rtol=0, atol=1e-4)


def test_an_unknown_format_or_architecture_is_refused_by_name(tmp_path) -> None:
    loaded = ARCHITECTURES["qwen2"](True)
    with pytest.raises(UserError, match=r"format must be one of q8_0.*'q9_9'"):
        write_gguf(loaded, tmp_path / "m.gguf", "q9_9")
    loaded.model.config.model_type = "mamba"
    with pytest.raises(UserError, match=r"architecture for GGUF must be one of .*qwen2.*, got 'mamba'"):
        write_gguf(loaded, tmp_path / "m.gguf")


def test_a_failed_export_leaves_the_old_file_alone(tmp_path) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"old")
    loaded = ARCHITECTURES["qwen2"](True)
    loaded.tokenizer.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(UserError, match="pre-tokenizer"):
        write_gguf(loaded, target)
    assert target.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


@needs_llama_cpp
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_reads_the_same_tokens(name, tied, tmp_path) -> None:
    loaded = ARCHITECTURES[name](tied)
    write_gguf(loaded, tmp_path / "m.gguf", "f32")
    text = TEXT[2].strip()
    ids = loaded.tokenizer(text)["input_ids"]
    _, tokens = read_by_llama_cpp(tmp_path / "m.gguf", ids, [1], loaded.model.config.vocab_size, text)
    assert tokens == ids


def test_a_vocabulary_of_bare_bytes_reads_back(tmp_path) -> None:
    from edgequant import models

    loaded = models.load("tiny", dtype="float32", device="cpu")
    write_gguf(loaded, tmp_path / "m.gguf", "f32")
    again = models.load(str(tmp_path / "m.gguf"), dtype="float32", device="cpu")
    ids = loaded.tokenizer(TEXT[2])["input_ids"]
    assert again.tokenizer(TEXT[2])["input_ids"] == ids
    torch.testing.assert_close(logits(again.model, torch.tensor([ids])), logits(loaded.model, torch.tensor([ids])))
