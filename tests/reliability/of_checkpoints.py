"""Adapters and checkpoints: missing or damaged, of another model, copied in part, of rarer kinds, with files more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from of_models import (
    EVALUATE,
    MATRIX,
    WEIGHTS,
    Change,
    edit,
    exported_up_projection,
    not_fetched,
    refused,
    tokens_without_a_row,
)  # fmt: skip
from safetensors.numpy import load_file, save_file
from situation import Place, Situation

ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHECKPOINT = "export --model CHECKPOINT"
ROWS = 272


def adapter(place: Place, base: str = "tiny") -> Path:
    """LoRA of rank 2, scale 8 / 2, on the up projections of both layers, with numbers in A and B."""
    folder, draws = place.folder / "adapter", np.random.default_rng(0)
    folder.mkdir()
    prefix = "base_model.model.model.layers"
    tensors = {f"{prefix}.{layer}.mlp.up_proj.lora_A.weight": draws.normal(size=(2, 128)) for layer in (0, 1)}
    tensors |= {f"{prefix}.{layer}.mlp.up_proj.lora_B.weight": draws.normal(size=(512, 2)) for layer in (0, 1)}
    save_file({name: 0.1 * array.astype(np.float32) for name, array in tensors.items()}, folder / ADAPTER_WEIGHTS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return folder


def adapter_merged(place: Place) -> str:
    """W + (alpha / rank) B A, computed here."""
    stored = load_file(adapter(place) / ADAPTER_WEIGHTS)
    said = place.edgequant("export", "--model", "adapter", "--format", "f32", "--check", "false", "--output", "out")
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    expected = load_file(place.tiny_folder / WEIGHTS)[MATRIX] + 4 * stored[name.format("B")] @ stored[name.format("A")]
    assert np.allclose(exported_up_projection(place, "adapter"), expected, atol=1e-6)
    return said


def adapter_lacks_a_matrix(place: Place) -> str:
    file = adapter(place) / ADAPTER_WEIGHTS
    save_file(
        {name: array for name, array in load_file(file).items() if "layers.1.mlp.up_proj.lora_B" not in name}, file
    )
    return place.edgequant("evaluate", "--model", "adapter")


def adapter_of_another_size(place: Place) -> str:
    file = adapter(place) / ADAPTER_WEIGHTS
    save_file({name: array[:, :64] if "lora_A" in name else array for name, array in load_file(file).items()}, file)
    return place.edgequant("qat", "--model", "adapter")


def adapter_without_its_base(place: Place) -> str:
    adapter(place, base="/models/gone")
    return place.edgequant("finetune", "--model", "adapter")


def adapter_with_tokens(place: Place) -> str:
    folder = adapter(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place.tiny_folder / name, folder)
    tokens_without_a_row(folder)
    return place.edgequant("ptq", "--model", "adapter")


# -------------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(place: Place) -> Path:
    return checkpoint_of(place, "w8")


def checkpoint_of(place: Place, name: str, model: str | None = None) -> Path:
    """`tiny`, or a folder in the place, rounded by a scheme."""
    from edgequant import models
    from edgequant.quantization import checkpoint
    from edgequant.quantization.ptq.quantize import quantize
    from edgequant.quantization.scheme import parse_scheme

    source = place.tiny_folder if model is None else place.folder / model
    loaded, scheme = models.load(str(source), dtype="float32", device="cpu"), parse_scheme(name)
    quantize(loaded.model, scheme)
    made = {"parameters": 525_000, "made_from": "tiny"}
    return checkpoint.save(loaded.model, loaded.tokenizer, place.folder / "checkpoint", scheme, **made).folder


def checkpoint_changed(change: Change) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        change(checkpoint(place))
        return place.edgequant("export", "--model", "checkpoint", "--check", "false", "--output", "out")

    return run


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "config.json").read_bytes())
    content[content.index(b"1e-06")] ^= 1  # the epsilon of the norms becomes 0
    (folder / "config.json").write_bytes(content)


def quantize_again(place: Place) -> str:
    checkpoint(place)
    return place.edgequant("ptq", "--model", "checkpoint", "--scheme", "w4-g32")


def with_harmless_files(folder: Path) -> None:
    for name in ("README.md", ".gitattributes", "LICENSE", "logo.png"):
        (folder / name).write_text("text")


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
    Situation("an adapter", "export --model ADAPTER", "read as meant", "export: adapter as f32", adapter_merged),
    Situation(
        "an adapter that lacks one matrix",
        "evaluate --model ADAPTER",
        "refused",
        "... adapter ... lacks tensor ...layers.1.mlp.up_proj.lora_B...; use the base it was trained on",
        adapter_lacks_a_matrix,
    ),
    Situation(
        "an adapter of a model of another size",
        "qat --model ADAPTER",
        "refused",
        "... does not fit its base 'tiny' (... size mismatch for ...",
        adapter_of_another_size,
    ),
    Situation(
        "an adapter whose base is gone",
        "finetune --model ADAPTER",
        "refused",
        "... was trained on '/models/gone', ... not found); put the model there, or ...",
        adapter_without_its_base,
    ),
    Situation(
        "an adapter with a token of its own and no row for it",
        "ptq --model ADAPTER",
        "refused",
        "... has no row for ('<|264|>')...",
        adapter_with_tokens,
    ),
    Situation(
        "one flipped bit in a checkpoint's config.json",
        CHECKPOINT,
        "refused",
        "... checkpoint ...: config.json is damaged (SHA-256 ...",
        checkpoint_changed(flip_a_bit),
    ),
    Situation(
        "a checkpoint without its manifest",
        CHECKPOINT,
        "refused",
        "... edgequant.json not found, without which its files cannot be checked; copy the whole ...",
        checkpoint_changed(lambda folder: (folder / "edgequant.json").unlink()),
    ),
    Situation(
        "a file more in a checkpoint",
        CHECKPOINT,
        "refused",
        "... added_tokens.json is not listed in edgequant.json and could change what is loaded; ...",
        checkpoint_changed(lambda folder: (folder / "added_tokens.json").write_text('{"<x>": 260}')),
    ),
    Situation(
        "README.md, .gitattributes, LICENSE and a picture in a checkpoint",
        CHECKPOINT,
        "read as meant",
        "export: tiny as ...",
        checkpoint_changed(with_harmless_files),
    ),
    Situation(
        "a checkpoint to quantise",
        "ptq --model CHECKPOINT",
        "refused",
        "... must be a floating-point model, got 'tiny', which is quantised already (edgequant); ...",
        quantize_again,
    ),
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
        "export: tiny as ...",
        checkpoint_changed(with_backups),
    ),
]
