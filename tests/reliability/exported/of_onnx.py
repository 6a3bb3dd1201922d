"""ONNX and GPTQ folders: checkpoints and models that they cannot hold, folders that are not as they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from situation import Place, Situation

NEEDS_CHECKPOINT = (
    "edgequant export: model for {} must be a checkpoint that `edgequant ptq` or `edgequant qat` made, got 'model' "
    "without integers; run `edgequant ptq --model ..."
)


def checkpoint(place: Place, scheme: str, **config: object) -> Path:
    """`tiny`, other values in its configuration, rounded to nearest by a scheme."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgequant import models
    from edgequant.quantization import checkpoint as checkpoints
    from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
    from edgequant.quantization.scheme import parse_scheme

    torch.manual_seed(0)
    changed = AutoConfig.from_pretrained(place.tiny_folder)
    changed.update(dict(config))
    model, parsed = AutoModelForCausalLM.from_config(changed).eval(), parse_scheme(scheme)
    parameters = model.num_parameters()
    prepare(model, parsed)
    if has_static_ranges(model):
        calibrate(model, [torch.arange(64)[None]])
    convert(model)
    tokenizer = models.load_tokenizer(str(place.tiny_folder))
    folder = place.folder / "model"
    checkpoints.save(model, tokenizer, folder, parsed, parameters=parameters, made_from="tiny")
    return folder


def needs_onnx() -> None:
    from edgequant.models.onnx import library

    if (lacking := library.missing()) is not None:
        pytest.skip(lacking)


def export(format: str, scheme: str, **config: object) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        if format == "onnx":
            needs_onnx()
        folder = checkpoint(place, scheme, **config)
        said = place.edgequant("export", "--model", folder, "--format", format, "--output", place.folder / "out")
        assert (place.status == 0) == (place.folder / "out").exists()
        return said

    return run


def floating(format: str) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        if format == "onnx":
            needs_onnx()
        folder = shutil.copytree(place.tiny_folder, place.folder / "model")
        return place.edgequant("export", "--model", folder, "--format", format, "--output", place.folder / "out")

    return run


def written(place: Place, scheme: str = "w4-g32+emb4") -> Path:
    needs_onnx()
    from edgequant import models
    from edgequant.export.onnx.write import write_onnx

    loaded = models.load(str(checkpoint(place, scheme)), dtype="float32", device="cpu")
    return write_onnx(loaded, place.folder / "folder").path


def evaluate(change: Callable[[Path], object], *options: str) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        folder = written(place)
        change(folder)
        return place.edgequant("evaluate", "--model", folder, *options, "--evaluation.tasks", "[boolq]")

    return run


def overwrite(folder: Path) -> None:
    with (folder / "model.onnx.data").open("r+b") as file:
        file.write(b"\1" * 64)


def replaced_by_somebody(place: Place) -> str:
    """A folder of ours with a file of the user's in it is not replaced."""
    folder = written(place)
    (folder / "notes.txt").write_text("mine")
    said = place.edgequant("export", "--model", place.folder / "model", "--format", "onnx", "--output", folder)
    assert (folder / "notes.txt").read_text() == "mine"
    return said


def exported_again(place: Place) -> str:
    """Over an earlier export: the new one stands, and every file has the SHA-256 that is written down."""
    import hashlib

    folder = written(place)
    said = place.edgequant("export", "--model", place.folder / "model", "--format", "onnx", "--output", folder)
    listed = json.loads((folder / "edgequant-output.json").read_text())["sha256"]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found | listed == found and len(found) == len(listed) + 1
    return said


def with_config_json(place: Place) -> str:
    """A folder with config.json beside genai_config.json, as hubs have them, is run by the runtime that is named."""
    folder = written(place)
    shutil.copy(place.tiny_folder / "config.json", folder)
    tasks = ("--evaluation.tasks", "[boolq]", "--limit", "2", "--data_dir", str(place.data()))
    return place.edgequant("evaluate", "--model", folder, "--runtime", "onnx", "--cache", "false", *tasks)


CANNOT = "edgequant export: scheme {} cannot be written as {}, whose {}; use ..."
SITUATIONS = [
    Situation("a model in floating point as ONNX", "export --format onnx", "refused",
              NEEDS_CHECKPOINT.format("onnx"), floating("onnx")),
    Situation("a model in floating point in GPTQ's layout", "export --format gptq", "refused",
              NEEDS_CHECKPOINT.format("gptq"), floating("gptq")),
    Situation("a checkpoint with fixed ranges of inputs", "export --format onnx", "refused",
              CANNOT.format("w8a8-static", "onnx", "MatMulNBits has no place for fixed ranges of inputs: it finds "
                            "them for each token"), export("onnx", "w8a8-static")),
    Situation("a checkpoint of q4_1, which has real minima", "export --format onnx", "refused",
              CANNOT.format("q4_1", "onnx", "MatMulNBits has no place for a real minimum for each group, only "
                            "integer zero points"), export("onnx", "q4_1")),
    Situation("a checkpoint in groups of 8", "export --format onnx", "refused",
              CANNOT.format("w4-g8", "onnx", "MatMulNBits has no place for groups of 8: they must be multiples of 16"),
              export("onnx", "w4-g8")),
    Situation("a checkpoint of 3 bits", "export --format onnx", "told",
              "...of them lie in the next wider integers that MatMulNBits takes, 2, 4 or 8 bits",
              export("onnx", "w3-g32")),
    Situation("a checkpoint whose angles change with the length", "export --format onnx", "refused",
              "edgequant export: rope_parameters.rope_type for onnx must be default or linear or llama3 or yarn in "
              "architecture qwen2, got 'dynamic', which onnxruntime-genai's graph does not compute; ...",
              export("onnx", "w4-g32", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})),
    Situation("a checkpoint with heads of 20 features", "export --format onnx", "refused",
              "edgequant export: head_dim for onnx must be a multiple of 8, got 20, which ONNX Runtime's attention "
              "does not take; keep the model as a folder", export("onnx", "w8", head_dim=20)),
    Situation("a checkpoint with a quantised embedding in GPTQ's layout", "export --format gptq", "refused",
              CANNOT.format("w4-g32+emb4", "gptq", "layout has no place for an embedding in integers"),
              export("gptq", "w4-g32+emb4")),
    Situation("a checkpoint whose rows have one scale in GPTQ's layout", "export --format gptq", "refused",
              CANNOT.format("w8", "gptq", "layout has no place for scales in float32, which rows with one scale have"),
              export("gptq", "w8")),
    Situation("an ONNX folder that holds a file of the user's", "export --output FOLDER", "refused",
              "edgequant export: output must be ..., got 'folder', which holds 'notes.txt', which edgequant did not "
              "write; name another folder", replaced_by_somebody),
    Situation("an ONNX folder over an earlier one", "export --output FOLDER", "read as meant",
              "format: onnx keeps all integers", exported_again),
    Situation("an ONNX folder in torch", "evaluate --model FOLDER", "refused",
              "edgequant evaluate: model 'folder' is a folder for onnxruntime-genai, which torch does not load; "
              "measure it with `edgequant evaluate --runtime onnx`, or give the checkpoint that it was made of",
              evaluate(lambda folder: None)),
    Situation("an ONNX folder with weights changed since", "evaluate --runtime auto", "refused",
              "edgequant evaluate: onnx folder folder: model.onnx.data was changed since edgequant wrote it; copy or "
              "export it again", evaluate(overwrite, "--runtime", "auto")),
    Situation("an ONNX folder without its weights", "evaluate --runtime onnx", "refused",
              "edgequant evaluate: onnx folder folder: model.onnx.data not found; copy the whole folder again",
              evaluate(lambda folder: (folder / "model.onnx.data").unlink(), "--runtime", "onnx")),
    Situation("a genai_config.json that is empty", "evaluate --runtime onnx", "refused",
              "edgequant evaluate: folder/genai_config.json must say model.decoder.head_size of a decoder, got none "
              "that can be used; export the folder again",
              evaluate(lambda folder: (folder / "genai_config.json").write_text("{}"), "--runtime", "onnx")),
    Situation("a model that is no ONNX folder", "evaluate --runtime onnx", "refused",
              "edgequant evaluate: model for runtime onnx must be a folder with genai_config.json, which `edgequant "
              "export --format onnx` writes, got 'tiny'; export it first or use runtime torch",
              lambda place: place.edgequant("evaluate", "--model", "tiny", "--runtime", "onnx")),
    Situation("a config.json beside genai_config.json", "evaluate --runtime onnx", "read as meant",
              "boolq: official BoolQ validation split ...", with_config_json),
]  # fmt: skip
