"""A checkpoint folder: loads in a fresh process, is refused when it is damaged, holds no pickle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgequant.errors import UserError
from edgequant.quantization import checkpoint
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.scheme import parse_scheme

TOKENS = list(range(0, 250, 5))


@pytest.fixture(scope="module", params=["w4a8-g32+emb4", "w8a8-static"])
def original(request, _tiny, tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """(folder, logits of TOKENS before saving)"""
    import copy

    scheme, model = parse_scheme(request.param), copy.deepcopy(_tiny.model)
    quantize(model, scheme, calibration=[torch.tensor([TOKENS])])
    folder = tmp_path_factory.mktemp("original") / "model"
    parameters = sum(p.numel() for p in _tiny.model.parameters())
    checkpoint.save(model, _tiny.tokenizer, folder, scheme, parameters=parameters, made_from="tiny")
    with torch.no_grad():
        return folder, model(input_ids=torch.tensor([TOKENS])).logits


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "copy"))


LOAD = """
import sys, edgequant, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
save_file({"logits": model(input_ids=torch.arange(0, 250, 5)[None]).logits.detach()}, sys.argv[2])
"""


@pytest.mark.long
def test_a_fresh_process_loads_it_after_import_edgequant(original, tmp_path, environment):
    command = [sys.executable, "-c", LOAD, str(original[0]), str(tmp_path / "logits.safetensors")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], original[1])


def test_importing_edgequant_alone_imports_neither_torch_nor_transformers(environment):
    code = "import sys, edgequant; print([m for m in ('torch', 'transformers', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_file_is_a_pickle(original):
    files = sorted(file for file in original[0].rglob("*") if file.is_file())
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja"}
    assert not [file for file in files if file.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")]


def test_every_file_is_in_the_manifest_with_its_sha256(original):
    import hashlib

    manifest = json.loads((original[0] / "edgequant.json").read_text())
    files = {file.name for file in original[0].iterdir()} - {"edgequant.json"}
    assert set(manifest["sha256"]) == files
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((original[0] / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("place", [0.05, 0.5, 0.999])
def test_a_flipped_byte_is_refused_with_the_files_name(folder, name, place):
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 0x01
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        checkpoint.open_checkpoint(folder)


def test_a_changed_digest_in_the_manifest_is_told_with_the_manifests_name(folder):
    manifest = json.loads((folder / "edgequant.json").read_text())
    digest = manifest["sha256"]["config.json"]
    manifest["sha256"]["config.json"] = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    (folder / "edgequant.json").write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=rf"config\.json is damaged \(SHA-256 {digest}, edgequant\.json lists {digest[:-1]}"
    ):
        checkpoint.open_checkpoint(folder)


def test_transformers_refuses_flipped_weights_too(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-7] ^= 0x10
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_missing_file_is_refused_with_its_name(folder, name):
    (folder / name).unlink()
    for load in (checkpoint.open_checkpoint, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(UserError, match=rf"{name} not found"):
            load(folder)


def test_missing_weights_are_refused_with_the_files_name(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors not found"):
        checkpoint.open_checkpoint(folder)


def test_a_plain_folder_is_no_checkpoint(tiny_folder):
    with pytest.raises(UserError, match=r"not an edgequant checkpoint: edgequant\.json not found"):
        checkpoint.open_checkpoint(tiny_folder)


def rewrite(folder: Path, change) -> None:
    """Change the tensors and make the manifest right again: only their shapes can tell."""
    import hashlib

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((folder / "edgequant.json").read_text())
    manifest["sha256"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "edgequant.json").write_text(json.dumps(manifest))


CODES = "model.layers.1.mlp.up_proj.packed_weight.codes"


def test_a_tensor_of_the_wrong_shape_is_refused_with_file_and_shapes(folder):
    rewrite(folder, lambda tensors: tensors.update({CODES: tensors[CODES][:-1].contiguous()}))
    with pytest.raises(UserError, match=r"model\.safetensors: tensor .*up_proj.*codes has shape \(511, "):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_tensor_that_is_not_there_is_refused_with_its_name(folder):
    rewrite(folder, lambda tensors: tensors.pop(CODES))
    with pytest.raises(UserError, match=r"model\.safetensors: tensor .*up_proj.*codes.*missing"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_a_floating_tensor_that_is_not_there_is_refused_too(folder, name):
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=rf"model\.safetensors: tensor {name}.*missing"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_tensor_too_many_is_refused_with_its_name(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"model\.extra\.weight"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(original, _tiny, tmp_path):
    target = tmp_path / "there" / "model"
    for _ in range(2):
        model = AutoModelForCausalLM.from_pretrained(original[0])
        scheme = checkpoint.open_checkpoint(original[0]).scheme
        checkpoint.save(model, _tiny.tokenizer, target, scheme, parameters=1, made_from="tiny")
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert checkpoint.open_checkpoint(target).scheme == scheme
    assert load_file(target / "model.safetensors").keys() == load_file(original[0] / "model.safetensors").keys()


def test_an_interrupted_save_leaves_the_old_checkpoint_whole(folder, _tiny, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = checkpoint.open_checkpoint(folder)

    def fail(*_args, **_more):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(model, _tiny.tokenizer, folder, before.scheme, parameters=1, made_from="tiny")
    assert checkpoint.open_checkpoint(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["copy"]
