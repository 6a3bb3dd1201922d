"""Folders copied in part, adapters with tokens of their own or of rarer kinds, checkpoints with another manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from of_checkpoints import ADAPTER_WEIGHTS, CHECKPOINT, adapter, checkpoint_changed
from of_models import EVALUATE, MATRIX, WEIGHTS, edit, exported_up_projection, not_fetched, refused
from safetensors.numpy import load_file, save_file
from situation import Place, Situation

ROWS = 272


def grown_adapter(place: Place) -> str:
    """Embedding and head were trained whole, with new tokens: peft saves each three times, under three names."""
    folder, draws = adapter(place), np.random.default_rng(1)
    stored, matrix = load_file(folder / ADAPTER_WEIGHTS), draws.normal(size=(ROWS, 128)).astype(np.float32)
    for name in ("model.embed_tokens", "lm_head"):
        for inner in ("", ".modules_to_save", ".original_module"):
            stored[f"base_model.model.{name}{inner}.weight"] = matrix if inner != ".original_module" else 0 * matrix
    save_file(stored, folder / ADAPTER_WEIGHTS)
    edit(folder / "adapter_config.json", modules_to_save=["embed_tokens", "lm_head"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place.tiny_folder / name, folder)
    said = place.edgequant("export", "--model", "adapter", "--format", "f32", "--check", "false", "--output", "out")
    found = exported(place, "token_embd.weight")
    assert np.array_equal(found, matrix)
    return said


def exported(place: Place, name: str) -> np.ndarray:
    from gguf import GGUFReader

    tensors = GGUFReader(place.folder / "out" / "adapter-f32.gguf").tensors
    return next(np.array(tensor.data) for tensor in tensors if tensor.name == name)


def pissa(place: Place) -> str:
    """PiSSA trains the first singular values and leaves the rest: W - U S V + scale B A, computed here."""
    folder = adapter(place)
    edit(folder / "adapter_config.json", init_lora_weights="pissa")
    said = place.edgequant("export", "--model", "adapter", "--format", "f32", "--check", "false", "--output", "out")
    stored, weight = load_file(folder / ADAPTER_WEIGHTS), load_file(place.tiny_folder / WEIGHTS)[MATRIX]
    left, values, right = np.linalg.svd(weight.astype(np.float64))
    rest = weight - (left[:, :2] * values[:2]) @ right[:2]
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    expected = rest + 4 * stored[name.format("B")] @ stored[name.format("A")]
    assert np.allclose(exported_up_projection(place, "adapter"), expected, atol=1e-5)
    return said


def pissa_by_random_numbers(place: Place) -> str:
    edit(adapter(place) / "adapter_config.json", init_lora_weights="pissa_niter_16")
    return place.edgequant("ptq", "--model", "adapter")


def another_scheme_in_the_manifest(folder: Path) -> None:
    content = json.loads((folder / "edgequant.json").read_text())
    content["scheme"]["weight"]["bits"] = 4
    (folder / "edgequant.json").write_text(json.dumps(content))


def with_backups(folder: Path) -> None:
    for name in ("config.json.bak", "config.json~", "Modelfile", "SHA256SUMS"):
        (folder / name).write_text("text")


def a_link_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../../blobs/0a1b")


SITUATIONS = [
    refused(
        "a Git LFS pointer instead of a tokenizer",
        EVALUATE,
        "... model/tokenizer.json is a Git LFS pointer, not the file itself; run ...",
        lambda folder: not_fetched(folder, "tokenizer.json"),
    ),
    refused(
        "a hub's snapshot copied without its blobs",
        EVALUATE,
        "... model/model.safetensors is a link to ../../blobs/0a1b, which is not there; copy ...",
        a_link_to_nothing,
    ),
    Situation(
        "an adapter with tokens of its own, embedding and head trained whole",
        "export --model ADAPTER",
        "read as meant",
        "export: adapter as f32",
        grown_adapter,
    ),
    Situation("an adapter begun by PiSSA", "export --model ADAPTER", "read as meant", "export: adapter as f32", pissa),
    Situation(
        "an adapter begun by PiSSA's fast decomposition",
        "ptq --model ADAPTER",
        "refused",
        "... was begun with pissa_niter_16, which changed its base by random numbers that nobody has; ...",
        pissa_by_random_numbers,
    ),
    Situation(
        "another scheme in a checkpoint's manifest",
        CHECKPOINT,
        "refused",
        "... the scheme in edgequant.json is not that in config.json; copy edgequant.json again",
        checkpoint_changed(another_scheme_in_the_manifest),
    ),
    Situation(
        "an editor's backups and a Modelfile in a checkpoint",
        CHECKPOINT,
        "read as meant",
        "export: tiny as compressed-tensors",
        checkpoint_changed(with_backups),
    ),
]
