"""An adapter is merged with all of its weights into the model that it names, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from noisy_adapters import logits, save_noisy
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from refused_twice import load, refusal
from safetensors.torch import load_file, save_file

from edgequant import models
from edgequant.models.adapters.quantized_base import bitsandbytes_config

WEIGHTS = "adapter_model.safetensors"


def save_adapter(
    model: Any, folder: Path, base: str = "tiny", embeddings: bool = False, **settings: Any
) -> torch.Tensor:
    """A noisy LoRA of q_proj and up_proj, or as the settings say; the logits of the model with it on top."""
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **({"target_modules": ["q_proj", "up_proj"]} | settings))
    return save_noisy(model, config, folder, base, noise=0.1, embeddings=embeddings)


def change_weights(folder: Path, change: Any) -> None:
    save_file({n: t.contiguous() for n, t in change(load_file(folder / WEIGHTS)).items()}, folder / WEIGHTS)


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "all"},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [1, 2, 3]},
    ],
    ids=str,
)
def test_what_is_merged_computes_what_the_adapter_did(tiny, tmp_path, settings):
    """tiny's head is tied to its embedding: an adapter on one of them leaves the other as it is."""
    if "ensure_weight_tying" in settings and "ensure_weight_tying" not in LoraConfig.__dataclass_fields__:
        pytest.skip("this peft does not tie what it saves")
    expected = save_adapter(tiny.model, tmp_path / "adapter", **settings)
    loaded = load(tmp_path / "adapter")
    assert not hasattr(loaded.model, "merge_and_unload")
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["base_model.model._orig_mod.", "module.base_model.model."])
def test_prefixes_of_wrappers_are_read(tiny, tmp_path, prefix):
    expected = save_adapter(tiny.model, tmp_path / "adapter")
    change_weights(tmp_path / "adapter", lambda t: {n.replace("base_model.model.", prefix, 1): x for n, x in t.items()})
    torch.testing.assert_close(logits(load(tmp_path / "adapter").model), expected, rtol=1e-4, atol=1e-5)


def test_tokens_that_an_adapter_brings_get_their_rows(tiny, tmp_path):
    model, tokenizer, _ = tiny
    tokenizer.add_tokens([f"<{index}>" for index in range(10)])
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer))
    expected = save_adapter(model, tmp_path / "adapter", embeddings=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-5)
    assert loaded.tokenizer("<9>").input_ids == [267]
    loaded.model(input_ids=torch.tensor([[267]]))
    change_weights(tmp_path / "adapter", lambda t: {n: x for n, x in t.items() if "lora" in n})
    assert "has 4 tokens that the embedding of 264 rows has no row for ('<6>'" in refusal(tmp_path / "adapter")


def test_an_adapter_upon_an_adapter_is_merged_twice(tiny, tmp_path):
    save_adapter(tiny.model, tmp_path / "first")
    inner = load(tmp_path / "first").model
    expected = save_adapter(inner, tmp_path / "second", base=str(tmp_path / "first"), target_modules=["down_proj"])
    torch.testing.assert_close(logits(load(tmp_path / "second").model), expected, rtol=1e-4, atol=1e-5)
    change_config(tmp_path / "first", base_model_name_or_path=str(tmp_path / "second"))
    assert "leads back to it" in refusal(tmp_path / "second")


def test_bitsandbytes_quantises_what_was_merged(tiny, tmp_path):
    save_adapter(tiny.model, tmp_path / "adapter")
    options = {"quantization_config": bitsandbytes_config("bnb-int8", "float32")}
    merged = load(tmp_path / "adapter").model
    merged.save_pretrained(tmp_path / "merged")
    tiny.tokenizer.save_pretrained(tmp_path / "merged")
    expected, found = (
        models.load(str(tmp_path / name), dtype="float32", device="cpu", load_options=options).model
        for name in ("merged", "adapter")
    )
    assert found.is_quantized and torch.equal(logits(found), logits(expected))


def lacking(folder: Path, part: str) -> None:
    change_weights(folder, lambda tensors: {name: x for name, x in tensors.items() if part not in name})


FAULTS = {
    "lacks tensor base_model.model.model.layers.1.mlp.up_proj.lora_B": lambda f: lacking(f, "1.mlp.up_proj.lora_B"),
    "lacks tensor base_model.model.model.norm.weight": lambda f: change_config(f, modules_to_save=["model.norm"]),
    "holds 4 tensors (base_model.model.model.layers.7": lambda f: change_weights(
        f, lambda t: t | {n.replace("layers.1", "layers.7"): x.clone() for n, x in t.items() if "layers.1" in n}
    ),
    "lacks 8 tensors": lambda f: change_weights(f, lambda t: {f"x.{n}": x for n, x in t.items()}),
    "does not fit its base 'tiny' (RuntimeError": lambda f: change_config(f, r=8),
    "does not fit its base 'tiny' (": lambda f: change_config(f, target_modules=["query_key_value"]),
    "task_type must be CAUSAL_LM, got 'SEQ_CLS'": lambda f: change_config(f, task_type="SEQ_CLS"),
    "could not be loaded: KeyError: 'ZZ'": lambda f: change_config(f, peft_type="ZZ"),
    "base_model_name_or_path not found in": lambda f: change_config(f, base_model_name_or_path=5),
    "was trained on './gone'": lambda f: change_config(f, base_model_name_or_path="./gone"),
    "adapter_config.json is not valid JSON": lambda f: (f / "adapter_config.json").write_text("["),
    "adapter_config.json must hold a JSON object": lambda f: (f / "adapter_config.json").write_text("[]"),
    "adapter weights (adapter_model.safetensors) not found": lambda f: (f / WEIGHTS).unlink(),
    "is damaged: ": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-7]),
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_does_not_fit_is_refused_in_one_line(tiny, tmp_path, message):
    save_adapter(tiny.model, tmp_path / "adapter")
    FAULTS[message](tmp_path / "adapter")
    assert message in refusal(tmp_path / "adapter")


def test_a_whole_model_beside_an_adapter_is_ambiguous(tiny, tiny_folder, tmp_path):
    expected = save_adapter(tiny.model, tmp_path / "adapter")
    shutil.copy(tiny_folder / "config.json", tmp_path / "adapter")  # some trainers leave it there: harmless
    torch.testing.assert_close(logits(load(tmp_path / "adapter").model), expected, rtol=1e-4, atol=1e-5)
    shutil.copy(tiny_folder / "model.safetensors", tmp_path / "adapter")
    assert "holds both a model (model.safetensors) and an adapter" in refusal(tmp_path / "adapter")


def test_prompts_that_are_no_change_of_weights_are_refused(tiny, tmp_path):
    adapted = get_peft_model(tiny.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    adapted.peft_config["default"].base_model_name_or_path = "tiny"
    adapted.save_pretrained(tmp_path)
    assert "must change weights, as LoRA does, got PROMPT_TUNING" in refusal(tmp_path)
