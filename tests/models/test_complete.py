"""Every weight of a loaded model comes from its files, under whatever known names they are stored."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from noisy_adapters import logits
from refused_twice import load, refusal
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from edgequant import models
from edgequant.errors import UserError

HEAD = "lm_head.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    changed = change(load_file(folder / "model.safetensors"))
    save_file({n: t.contiguous() for n, t in changed.items()}, folder / "model.safetensors", metadata={"format": "pt"})


RENAMED = {
    **{prefix: lambda name, prefix=prefix: prefix + name for prefix in ("base_model.model.", "module.", "_orig_mod.")},
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "language_model.": lambda name: f"language_model.{name}",
    "model.language_model.": lambda name: name.replace("model.", "model.language_model."),
    "twice model.": lambda name: f"model.{name}",
    "compiled layers": lambda name: name.replace("self_attn.", "_orig_mod.self_attn."),
    "checkpointed layers": lambda name: name.replace("mlp.", "_checkpoint_wrapped_module.mlp."),
    "base model": lambda name: name.removeprefix("model."),
    "base model in DDP": lambda name: f"module.{name.removeprefix('model.')}",
}


@pytest.mark.parametrize("kind", RENAMED)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_known_prefixes_are_read_with_equal_logits(folder, tiny, kind, form):
    rewrite(folder, lambda tensors: {RENAMED[kind](name): tensor for name, tensor in tensors.items()})
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    assert torch.equal(logits(load(folder).model), logits(tiny.model))


def test_a_prefix_does_not_hide_what_is_missing(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: {f"module.{n}": t for n, t in tensors.items() if n != name})
    assert f"lacks tensor {name};" in refusal(folder)


def test_shards_are_read_and_each_must_be_there(folder, tiny):
    (folder / "model.safetensors").unlink()
    tiny.model.save_pretrained(folder, max_shard_size="500KB")
    last = max(folder.glob("model-*.safetensors"))
    assert torch.equal(logits(load(folder).model), logits(tiny.model))
    last.unlink()
    assert f"{last.name} not found, 1 of the " in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.embeddings.position_ids",
        "vision_tower.blocks.0.weight",
        "model.multi_modal_projector.weight",
    ],
)
def test_what_other_versions_and_towers_store_is_not_refused(folder, tiny, name):
    rewrite(folder, lambda tensors: tensors | {name: torch.zeros(4)})
    assert torch.equal(logits(load(folder).model), logits(tiny.model))


def test_a_base_model_saved_alone_is_whole_only_where_its_head_is_tied(folder, tiny, tmp_path):
    tiny.model.model.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "base")
    assert torch.equal(logits(load(tmp_path / "base").model), logits(tiny.model))
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert f"lacks tensor {HEAD};" in refusal(tmp_path / "base")


def gemma_config() -> Any:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return Gemma3TextConfig(hidden_size=32, intermediate_size=64, vocab_size=264, **heads, **ids)


@pytest.mark.parametrize("layout", ["language_model.model.{}", "model.language_model.{}"])
def test_the_language_model_of_a_multimodal_gemma_is_read_out_of_its_weights(folder, tmp_path, layout):
    model = Gemma3ForCausalLM(gemma_config()).eval()
    model.save_pretrained(folder)
    rewrite(
        folder,
        lambda tensors: {
            **{layout.format(name.removeprefix("model.")): tensor for name, tensor in tensors.items()},
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(8, 8),
            "multi_modal_projector.mm_input_projection_weight": torch.zeros(8, 8),
        },
    )
    assert torch.equal(logits(load(folder).model), logits(model))


# ------------------------------------------------------------------------------------------------ what cannot be read


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, r"lacks 12 tensors (model.layers.2."),
        ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, r"holds 12 tensors (model.layers.1."),
        ({"model_type": "llama"}, "holds 6 tensors (model.layers.0.self_attn.k_proj.bias"),
        ({"num_key_value_heads": 4}, "k_proj.bias has shape (64,), config.json asks for (128,) (7 more like it)"),
        ({"hidden_size": "128"}, "hidden_size in config.json must be a positive whole number, got '128'"),
        ({"num_hidden_layers": 2.5}, "'num_hidden_layers' expected int, got float"),
        ({"hidden_act": "zz"}, "KeyError: 'zz'"),
        ({"model_type": None}, "could not be loaded"),
        ({"model_type": "t5"}, "could not be loaded"),
        ({"quantization_config": "int4"}, "quantization_config must be an object with a quant_method, got 'int4'"),
        ({"quantization_config": {"quant_method": "zz"}}, "is quantised in a way that transformers does not know"),
        ({"edgequant_model": "tiny"}, "edgequant.json not found, without which"),
    ],
)
def test_a_config_of_another_model_is_refused_in_one_line(folder, changed, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(UserError) as refused:
        models.layer_inputs(str(folder))
        models.check_available(str(folder))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"\xff\xfe", "config.json is not valid JSON"),
        ("model.safetensors", b"", "is not a safetensors file (no header)"),
        ("model.safetensors", b"\xff" * 64, "is not a safetensors file (no header)"),
        ("tokenizer.json", b"{}", "the tokenizer of "),
        ("tokenizer.json", b"[1", "the tokenizer of "),
        ("tokenizer_config.json", b"[1", "tokenizer_config.json is not valid JSON"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    assert message in refusal(folder)


def test_a_pickle_that_runs_code_or_is_cut_off_is_refused(folder, tiny):
    (folder / "model.safetensors").unlink()
    torch.save(tiny.model, folder / "pytorch_model.bin")  # a whole module, which only pickle can read
    assert "could not be loaded: UnpicklingError" in refusal(folder)
    torch.save(tiny.model.state_dict(), folder / "pytorch_model.bin")
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    assert "could not be loaded: RuntimeError" in refusal(folder)


def test_an_image_token_without_a_row_is_what_gemma_ships(folder, tiny):
    tokenizer = tiny.tokenizer
    tokenizer.add_tokens([f"<{index}>" for index in range(264 - len(tokenizer))] + ["<image_soft_token>"])
    tokenizer.save_pretrained(folder)
    assert torch.equal(logits(load(folder).model), logits(tiny.model))
    tokenizer.add_tokens(["<call>"])
    tokenizer.save_pretrained(folder)
    assert "has 1 tokens that the embedding of 264 rows has no row for ('<call>')" in refusal(folder)


def test_a_folder_that_hubs_and_people_decorate_is_loaded(folder, tiny):
    for name in ("README.md", "LICENSE.txt", ".gitattributes", "training_args.bin", "special.txt"):
        (folder / name).write_text("text")
    (folder / "onnx").mkdir()
    assert torch.equal(logits(load(folder).model), logits(tiny.model))


def test_what_is_stored_in_half_precision_is_read_as_it_is(folder):
    rewrite(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    assert torch.equal(logits(load(folder).model), logits(expected))


# --------------------------------------------------------------------------------------------------------- quantised


@pytest.fixture(scope="module", params=["bnb-int8", "bnb-nf4"])
def quantized(request, _tiny, tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """(bitsandbytes' folder, its logits before saving)"""
    from edgequant.models.adapters.quantized_base import bitsandbytes_config

    options = {"quantization_config": bitsandbytes_config(request.param, "float32")}
    loaded = models.load("tiny", dtype="float32", device="cpu", load_options=options)
    folder = tmp_path_factory.mktemp("quantized")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder, logits(loaded.model)


def test_bitsandbytes_own_tensors_are_not_left_over(quantized):
    assert torch.equal(logits(load(quantized[0]).model), quantized[1])


@pytest.mark.parametrize("part", ["weight", "scale"])
def test_a_lost_tensor_of_bitsandbytes_is_named(quantized, tmp_path, part):
    folder = Path(shutil.copytree(quantized[0], tmp_path / "copy"))
    name = "model.layers.0.mlp.up_proj"
    lost = {f"{name}.weight"} if part == "weight" else {f"{name}.SCB", f"{name}.weight.absmax"}
    rewrite(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in lost})
    assert f"tensor {name}.weight" in refusal(folder)


def test_a_load_says_nothing_of_its_own(tiny_folder):
    """With a level set, transformers' logger tells which rules of tensor parallelism were not used, at each load."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        models.load(str(tiny_folder), dtype="float32", device="cpu")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert said == []
