"""Model folders: what is missing, left over, damaged or of another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file
from situation import Place, Situation

WEIGHTS = "model.safetensors"
MATRIX = "model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, Any]
Change = Callable[[Path], object]


def given_to(*command: str) -> Callable[[Change], Callable[[Place], str]]:
    """A situation whose input is `tiny`'s folder, changed; FOLDER in the command stands for it."""

    def situation(change: Change) -> Callable[[Place], str]:
        def run(place: Place) -> str:
            change(Path(shutil.copytree(place.tiny_folder, place.folder / "model")))
            return place.edgequant(*("model" if word == "FOLDER" else word for word in command))

        return run

    return situation


def of_weights(change: Callable[[Tensors], Tensors]) -> Change:
    def rewrite(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def of_config(**values: Any) -> Change:
    return lambda folder: edit(folder / "config.json", **values)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def a_lost_shard(folder: Path) -> None:
    names = sorted(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{1 + (name == MATRIX)}-of-00002.safetensors" for name in names}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))


def not_fetched(folder: Path, name: str = WEIGHTS) -> None:
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 2108576\n")


def a_gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=2)).save_pretrained(folder)


def tokens_without_a_row(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    for index in range(258, 265):
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": index, "content": f"<|{index}|>"})
    file.write_text(json.dumps(tokenizer))


def wrapped_names(place: Place) -> str:
    """Every matrix of the exported file is the stored one, although DDP and peft put prefixes before their names."""
    folder = Path(shutil.copytree(place.tiny_folder, place.folder / "model"))
    of_weights(lambda tensors: {f"module.base_model.model.{name}": tensor for name, tensor in tensors.items()})(folder)
    said = place.edgequant("export", "--model", "model", "--format", "f32", "--check", "false", "--output", "out")
    assert np.array_equal(exported_up_projection(place, "model"), load_file(place.tiny_folder / WEIGHTS)[MATRIX])
    return said


def exported_up_projection(place: Place, name: str) -> Any:
    tensors = GGUFReader(place.folder / "out" / f"{name}-f32.gguf").tensors
    return next(tensor.data for tensor in tensors if tensor.name == "blk.1.ffn_up.weight")


EXPORT, EVALUATE, PTQ = "export --model FOLDER", "evaluate --model FOLDER", "ptq --model FOLDER"


def refused(given: str, command: str, line: str, change: Change) -> Situation:
    return Situation(given, command, "refused", line, given_to(*command.split())(change))


SITUATIONS = [
    refused(
        "a model folder that lacks one matrix",
        PTQ,
        f"edgequant ptq: model ... lacks tensor {MATRIX}; copy ...",
        of_weights(lambda tensors: {name: array for name, array in tensors.items() if name != MATRIX}),
    ),
    refused(
        "names of weights behind a foreign prefix",
        EVALUATE,
        "... lacks 27 tensors (... holds 26 tensors (x.model...",
        of_weights(lambda tensors: {f"x.{name}": array for name, array in tensors.items()}),
    ),
    Situation(
        "names of weights behind module. and base_model.model.",
        EXPORT,
        "read as meant",
        "export: model as f32",
        wrapped_names,
    ),
    refused(
        "LoRA matrices within a model's own weights",
        EVALUATE,
        "... holds tensor ...lora_A.weight, without a place in ...",
        of_weights(lambda tensors: tensors | {"model.layers.0.mlp.up_proj.lora_A.weight": np.zeros((2, 128), "f4")}),
    ),
    refused(
        "a tensor of another shape than config.json says",
        EVALUATE,
        "... model.norm.weight has shape (64,), ... (128,)...",
        of_weights(lambda tensors: tensors | {"model.norm.weight": np.zeros(64, "f4")}),
    ),
    refused(
        "integer weights without quantization_config",
        EVALUATE,
        f"... {MATRIX} is stored as I8 and config.json has no ...",
        of_weights(lambda tensors: tensors | {MATRIX: np.zeros((512, 128), np.int8)}),
    ),
    refused(
        "bitsandbytes in config.json over floating-point weights",
        EXPORT,
        "... says quantised by bitsandbytes, and its weights are floating-point; ...",
        of_config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ),
    refused(
        "a GPT-2, whose layers are Conv1D",
        "ptq --model FOLDER --scheme w8",
        "... must have layers of nn.Linear, which scheme w8 quantises, got GPT2LMHeadModel with Conv1D in ...",
        a_gpt2,
    ),
    refused(
        "safetensors cut short",
        EVALUATE,
        "... model/model.safetensors is damaged: 2,107,576 bytes, its header says 2,108,576; ...",
        cut_short,
    ),
    refused(
        "a shard that is not there",
        EVALUATE,
        "... model-00002-of-00002.safetensors not found, 1 of the 2 files that ...",
        a_lost_shard,
    ),
    refused(
        "a Git LFS pointer instead of weights",
        EVALUATE,
        "... is a Git LFS pointer, not the file itself; run `git lfs pull` ...",
        not_fetched,
    ),
    refused(
        "a config.json that is no object",
        EVALUATE,
        "... model/config.json must hold a JSON object, got list; copy ...",
        lambda folder: (folder / "config.json").write_text("[1]"),
    ),
    refused(
        "an unknown architecture",
        EVALUATE,
        "... could not be loaded: ... model type `flux9` ...",
        of_config(model_type="flux9"),
    ),
    refused(
        "a masked language model",
        PTQ,
        "... must be a causal language model, got a bert, ...",
        of_config(model_type="bert", architectures=["BertForMaskedLM"]),
    ),
    refused(
        "a model that brings Python code",
        EVALUATE,
        "... needs Python code of its own, which edgequant does not run...",
        of_config(model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}),
    ),
    refused(
        "no tokenizer",
        EVALUATE,
        "... tokenizer not found in model folder ...; copy ...",
        lambda folder: (folder / "tokenizer.json").unlink(),
    ),
    refused(
        "a token that the embedding has no row for",
        EVALUATE,
        "... embedding of 264 rows has no row for ('<|264|>')...",
        tokens_without_a_row,
    ),
]
