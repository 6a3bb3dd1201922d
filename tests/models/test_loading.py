"""What a model argument means, and that each kind of source loads, or says what was tried and what to do."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from edgequant import models, tracking
from edgequant.errors import UserError
from edgequant.export.gguf.write import write_gguf
from edgequant.models import devices
from edgequant.quantization import checkpoint
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.lora import attach
from edgequant.training.settings import LoraSettings

METHODOLOGY = {
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "tinyllama-1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "phi-1.5": "microsoft/phi-1_5",
    "gemma-3-1b-it": "google/gemma-3-1b-it",
}
TOKENS = torch.arange(40)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS.to(model.device)).logits.float()


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(("name", "hub_id"), METHODOLOGY.items())
def test_short_names_stand_for_the_methodologys_hub_models(name, hub_id):
    assert models.resolve(name) == models.ModelSource("hub", name, hub_id)


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("tiny", "tiny", "tiny"),
        ("smollm2-135m", "embedded", "smollm2-135m"),
        ("HuggingFaceTB/SmolLM2-360M", "hub", "smollm2-360m"),
        ("models:/edgequant-tiny/3", "mlflow", "edgequant-tiny-3"),
        ("models:/edgequant-tiny@champion", "mlflow", "edgequant-tiny-champion"),
        ("runs:/0123abcd/checkpoint", "mlflow", "0123abcd-checkpoint"),
    ],
)
def test_a_source_is_told_by_its_form(source, kind, name):
    resolved = models.resolve(source)
    assert (resolved.kind, resolved.name) == (kind, name)


@pytest.mark.parametrize(
    ("source", "family"),
    [
        ("tiny", "tiny"),
        ("models:/edgequant-Tiny/3", "tiny"),
        ("models:/edgequant-tiny@champion", "tiny"),
        ("models:/their model/3", "their-model"),
        ("runs:/0123abcd/checkpoint", "0123abcd-checkpoint"),
    ],
)
def test_what_is_made_of_a_registered_version_goes_by_the_name_of_all_versions(source, family):
    assert models.resolve(source).family == family


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gpt5", r"model 'gpt5' is unknown; give a short name \(qwen2\.5-0\.5b, .*tiny\), a hub id"),
        ("./nowhere", r"model '\./nowhere' not found; give a folder"),
        ("missing.gguf", r"'missing\.gguf' not found"),
        ("a/b/c", r"'a/b/c' not found"),
        ("", r"model '' is unknown"),
        ("two words/model", r"is unknown"),
    ],
)
def test_what_means_nothing_is_refused_with_what_would(source, message):
    with pytest.raises(UserError, match=message):
        models.resolve(source)


def test_an_empty_folder_is_refused_with_what_it_should_hold(tmp_path):
    with pytest.raises(
        UserError, match=r"must hold a config\.json, adapter_config\.json or one \.gguf, got .* with no config\.json"
    ):
        models.load(str(tmp_path))


def test_a_folder_without_weights_is_refused(tiny_folder, tmp_path):
    shutil.copy(tiny_folder / "config.json", tmp_path)
    with pytest.raises(
        UserError, match=r"weights \(\*\.safetensors\) not found in model folder .*, which has a config\.json"
    ):
        models.load(str(tmp_path))


def test_a_broken_config_is_refused_with_the_files_name(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        models.load(str(tmp_path))


# ------------------------------------------------------------------------------------------- folders, files, MLflow


def test_a_plain_folder_loads_with_its_tokenizer(tiny, tiny_folder):
    loaded = models.load(str(tiny_folder), dtype="float32", device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny.model))
    assert loaded.tokenizer("a b").input_ids == tiny.tokenizer("a b").input_ids
    assert loaded.source == models.ModelSource("folder", "tiny", str(tiny_folder))
    assert not loaded.model.training


def test_a_gguf_file_loads_alone_and_as_the_only_one_of_its_folder(tiny, tmp_path):
    exported = write_gguf(tiny, tmp_path / "Tiny F32.gguf", "f32").path
    for source in (exported, tmp_path):
        loaded = models.load(str(source), dtype="float32", device="cpu")
        assert (loaded.source.kind, loaded.source.name) == ("gguf", "tiny-f32")
        torch.testing.assert_close(logits(loaded.model), logits(tiny.model), rtol=1e-4, atol=1e-5)
    loaded.model.save_pretrained(tmp_path / "saved")  # plain floats: transformers must not refuse to save them


def test_a_broken_gguf_file_is_refused_by_name(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(40))
    with pytest.raises(UserError, match=r"GGUF file .*broken\.gguf' could not be read"):
        models.load(str(tmp_path / "broken.gguf"))


@pytest.mark.parametrize("base", ["tiny", "folder"])
def test_an_adapter_folder_loads_over_the_model_that_it_names(tiny, tiny_folder, tmp_path, base):
    source = "tiny" if base == "tiny" else str(tiny_folder)
    adapted = attach(tiny.model, LoraSettings(rank=2), made_from=source)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    loaded = models.load(str(tmp_path / "adapter"), dtype="float32", device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(adapted.eval()), rtol=1e-4, atol=1e-5)
    assert loaded.tokenizer("x").input_ids == tiny.tokenizer("x").input_ids


def test_an_adapter_that_names_no_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match=r"base_model_name_or_path not found in .*adapter_config\.json; add"):
        models.load(str(tmp_path))


@pytest.fixture
def saved(tiny, tmp_path) -> Path:
    quantize(tiny.model, parse_scheme("w4-g32+emb4"))
    models.cast(tiny.model, "bfloat16")
    folder = tmp_path / "some checkpoint"
    checkpoint.save(
        tiny.model, tiny.tokenizer, folder, parse_scheme("w4-g32+emb4"), parameters=329_856, made_from="tiny"
    )
    return folder


def test_a_checkpoint_goes_by_the_model_it_was_made_from_and_loads_as_it_was_measured(saved, tiny):
    loaded = models.load(str(saved), device="cpu")
    assert loaded.source.name == "tiny" and models.is_checkpoint(saved)
    assert loaded.model.dtype == torch.bfloat16
    assert torch.equal(logits(loaded.model), logits(tiny.model))
    assert models.load(str(saved), dtype="float32", device="cpu").model.dtype == torch.float32


def test_registered_models_and_run_artifacts_load_by_uri(saved, tiny, store, tmp_path):
    with tracking.workflow_run("qat", {}) as run:
        version = tracking.register_checkpoint(saved, "edgequant-tiny", tags={})
    store.set_registered_model_alias("edgequant-tiny", "champion", version)
    for uri in (f"runs:/{run.id}/checkpoint", f"models:/edgequant-tiny/{version}", "models:/edgequant-tiny@champion"):
        assert torch.equal(logits(models.load(uri, device="cpu").model), logits(tiny.model))
        assert models.load_tokenizer(uri)("é").input_ids == tiny.tokenizer("é").input_ids
        source = models.check_available(uri)
        assert (source.kind, source.name, source.family) == ("folder", models.resolve(uri).name, "tiny")
    kept = next(Path(store.get_run(run.id).info.artifact_uri.removeprefix("file://")).rglob("model.safetensors"))
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        models.check_available(f"models:/edgequant-tiny/{version}")


def test_an_uri_that_leads_nowhere_is_refused_with_the_store(store):
    with pytest.raises(UserError, match=r"models:/nothing/1 could not be fetched from sqlite:.*MLflow UI"):
        models.load("models:/nothing/1")


# -------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """The hub client's cache, empty, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into_cache(cache: Path, hub_id: str, folder: Path) -> None:
    """As the hub's client lays it out: models--owner--name/{refs/main, snapshots/<commit>}."""
    home, commit = cache / f"models--{hub_id.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)


@pytest.mark.parametrize(("name", "hub_id"), METHODOLOGY.items())
def test_a_hub_model_loads_from_the_clients_cache(name, hub_id, hub_cache, tiny, tiny_folder):
    put_into_cache(hub_cache, hub_id, tiny_folder)
    for source in (name, hub_id):
        loaded = models.load(source, dtype="float32", device="cpu")
        assert torch.equal(logits(loaded.model), logits(tiny.model))
        assert loaded.source.kind == "hub"
    assert models.load_tokenizer(name)("a b").input_ids == tiny.tokenizer("a b").input_ids


@pytest.mark.parametrize("load", [models.load, models.load_tokenizer])
def test_without_network_the_error_names_the_model_what_was_tried_and_how_to_get_it(load, hub_cache):
    started = time.perf_counter()
    with pytest.raises(UserError) as refusal:
        load("qwen2.5-0.5b")
    message = str(refusal.value)
    assert "'qwen2.5-0.5b' could not be loaded: tried Qwen/Qwen2.5-0.5B on https://huggingface.co" in message
    assert "hf download Qwen/Qwen2.5-0.5B" in message and "--model FOLDER" in message and "smollm2-135m" in message
    assert time.perf_counter() - started < 20


def test_an_unknown_host_is_not_asked_again_and_again(hub_cache, monkeypatch):
    """The hub's client would retry for a minute; a name that does not resolve puts it offline at once."""
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"on https://hub\.invalid and in the local hub cache"):
        models.load("microsoft/phi-1_5")
    assert time.perf_counter() - started < 20
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False  # put back


# -------------------------------------------------------------------------------------------------- types and devices


def test_auto_is_bfloat16_only_where_the_device_computes_it(monkeypatch):
    for natively, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "computes_bfloat16", lambda _, natively=natively: natively)
        assert models.load("tiny", device="cpu").model.dtype == expected


def test_an_unknown_type_is_refused():
    with pytest.raises(UserError, match=r"dtype must be one of auto, float32, bfloat16, float16, got 'int4'"):
        models.load("tiny", dtype="int4")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(UserError, match=rf"device must be .*, got '{device}'|device '{device}' not found"):
        models.load("tiny", device=device)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_model_computes_what_the_same_model_loaded_in_that_type_does(tiny, tiny_folder, dtype):
    """torch's own .to() would round the rotary frequencies: the model measured would not be the one that users load."""
    loaded = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
    cast = models.cast(tiny.model, dtype)
    assert cast.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(logits(cast), logits(loaded))
    assert torch.equal(logits(models.load("tiny", dtype=dtype, device="cpu").model), logits(loaded))


def test_a_cast_gemma_keeps_the_frequencies_of_both_attentions(tmp_path):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_hidden_layers": 6}
    config = Gemma3TextConfig(
        hidden_size=64, intermediate_size=64, vocab_size=64, **heads, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    model = Gemma3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16")
    assert torch.equal(logits(models.cast(model, "bfloat16")), logits(loaded))


def test_inputs_of_layers_are_known_before_any_weight_is_loaded(tiny, tiny_folder):
    modules = dict(tiny.model.named_modules())
    for source in ("tiny", str(tiny_folder)):
        features = models.layer_inputs(source)
        assert {name: modules[name].in_features for name in features} == features
        assert "model.layers.0.mlp.down_proj" in features
    assert models.layer_inputs("qwen2.5-0.5b") == {}
    assert models.layer_inputs("smollm2-135m")["model.layers.0.mlp.down_proj"] == 1536
