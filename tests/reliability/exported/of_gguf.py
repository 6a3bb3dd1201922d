"""GGUF files that say what a reader may not know, and models that a GGUF file cannot hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from situation import Place, Situation


def written(place: Place) -> Path:
    """`tiny` as a GGUF file, as the export writes it."""
    from edgequant import models
    from edgequant.export.gguf.write import write_gguf

    loaded = models.load(str(place.tiny_folder), dtype="float32", device="cpu")
    return write_gguf(loaded, place.folder / "whole.gguf", "f32").path


def changed(place: Place, fields: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> Path:
    """The same with other fields and tensors, under the name model.gguf."""
    from gguf_files import rewritten

    return rewritten(written(place), place.folder / "model.gguf", fields, tensors)


def configured(place: Place, **values: Any) -> Path:
    """`tiny`'s folder with other values in its config.json, and weights of their shapes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = shutil.copytree(place.tiny_folder, place.folder / "model")
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def read(command: str, fields: Mapping[str, Any]) -> Callable[[Place], str]:
    return lambda place: place.edgequant(command, "--model", changed(place, fields))


def export(**values: Any) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        said = place.edgequant("export", "--model", configured(place, **values), "--output", place.folder / "out")
        assert place.status == 0 or not (place.folder / "out").exists()
        return said

    return run


def bytes_of(make: Callable[[bytes], bytes]) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        (place.folder / "model.gguf").write_bytes(make(written(place).read_bytes()))
        return place.edgequant("ptq", "--model", place.folder / "model.gguf")

    return run


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(200)[None] % 250).logits


def scaled_fields_are_the_scaled_model(place: Place) -> str:
    """Against transformers' own model with the scaling, given tiny's weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgequant import models

    fields = {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0,
              "qwen2.rope.scaling.original_context_length": 64}  # fmt: skip
    file = changed(place, fields)
    config = AutoConfig.from_pretrained(place.tiny_folder)
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                              "rope_theta": theta}  # fmt: skip
    expected = AutoModelForCausalLM.from_config(config)
    tiny = AutoModelForCausalLM.from_pretrained(place.tiny_folder)
    expected.load_state_dict(tiny.state_dict())
    found = models.load(str(file), dtype="float32", device="cpu").model
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(found), logits(tiny), rtol=0, atol=1e-3)
    return place.edgequant("export", "--model", file, "--format", "f32", "--output", place.folder / "out")


def own_head_size_leaves_and_comes_back(place: Place) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    from edgequant import models

    folder = configured(place, head_dim=64)
    said = place.edgequant("export", "--model", folder, "--format", "f32", "--output", place.folder / "out")
    found = models.load(str(place.folder / "out" / "model-f32.gguf"), dtype="float32", device="cpu").model
    expected = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=1e-5)
    return said


NOT_READ = "GGUF file 'model.gguf' could not be read: "
SITUATIONS = [
    Situation(
        "half of a GGUF file", "ptq --model model.gguf", "refused",
        f"edgequant ptq: {NOT_READ}it is cut off or damaged ...; copy it again",
        bytes_of(lambda whole: whole[: len(whole) // 2]),
    ),
    Situation(
        "an archive with the name of a GGUF file", "ptq --model model.gguf", "refused",
        f"edgequant ptq: {NOT_READ}it must begin with b'GGUF', got b'PK\\x03\\x04'; ...",
        bytes_of(lambda whole: b"PK\x03\x04" + whole[4:]),
    ),
    Situation(
        "GGUF file of version 1", "ptq --model model.gguf", "refused",
        f"edgequant ptq: {NOT_READ}version must be 2 or 3, got 1; ...",
        bytes_of(lambda whole: whole[:4] + b"\x01\x00\x00\x00" + whole[8:]),
    ),
    Situation(
        "the first of three parts of a split GGUF file", "evaluate --model model.gguf", "refused",
        f"edgequant evaluate: {NOT_READ}it is part 1 of 3 of a split file; join them with ...",
        read("evaluate", {"split.count": 3, "split.no": 0}),
    ),
    Situation(
        "GGUF file of an architecture that is not known", "qat --model model.gguf", "refused",
        f"edgequant qat: {NOT_READ}architecture must be one of llama, qwen2, phi2, gemma3, got 'mamba'; ...",
        read("qat", {"general.architecture": "mamba"}),
    ),
    Situation(
        "GGUF file whose attention is soft-capped", "evaluate --model model.gguf", "refused",
        f"edgequant evaluate: {NOT_READ}field qwen2.attn_logit_softcapping = 30.0 has no counterpart in ...",
        read("evaluate", {"qwen2.attn_logit_softcapping": 30.0}),
    ),
    Situation(
        "GGUF file with a sliding window", "finetune --model model.gguf", "refused",
        f"edgequant finetune: {NOT_READ}field qwen2.attention.sliding_window = 64 has no counterpart in ...",
        read("finetune", {"qwen2.attention.sliding_window": 64}),
    ),
    Situation(
        "GGUF file with a field that nobody knows", "export --model model.gguf", "refused",
        f"edgequant export: {NOT_READ}field qwen2.attention.sink = 1 has no counterpart in ...",
        read("export", {"qwen2.attention.sink": 1}),
    ),
    Situation(
        "GGUF file with one layer more than it has tensors", "ptq --model model.gguf", "refused",
        f"edgequant ptq: {NOT_READ}tensor blk.2.attn_q.weight not found, for weight ...",
        read("ptq", {"qwen2.block_count": 3}),
    ),
    Situation(
        "GGUF file whose tokenizer cuts text in an unknown way", "ptq --model model.gguf", "refused",
        f"edgequant ptq: {NOT_READ}tokenizer.ggml.pre must be one of gpt-2, ..., got 'mystery'",
        read("ptq", {"tokenizer.ggml.pre": "mystery"}),
    ),
    Situation(
        "GGUF file with fewer tokens than the embedding has rows", "ptq --model model.gguf", "refused",
        f"edgequant ptq: {NOT_READ}3 tokens for an embedding of 264 rows",
        read("ptq", {"tokenizer.ggml.tokens": ["a", "b", "c"]}),
    ),
    Situation(
        "GGUF file whose end token lies beyond the vocabulary", "ptq --model model.gguf", "refused",
        f"edgequant ptq: {NOT_READ}tokenizer.ggml.eos_token_id must be below the vocabulary's 264, got 999",
        read("ptq", {"tokenizer.ggml.eos_token_id": 999}),
    ),
    Situation(
        "GGUF file with yarn's scaled rotary frequencies", "export --model model.gguf --format f32", "read as meant",
        "...model-f32.gguf...", scaled_fields_are_the_scaled_model,
    ),
    Situation(
        "model folder whose heads are not hidden_size / heads", "export --model FOLDER --format f32", "read as meant",
        "...model-f32.gguf...", own_head_size_leaves_and_comes_back,
    ),
    Situation(
        "model folder with an activation that llama.cpp's version does not have", "export --model FOLDER", "refused",
        "edgequant export: hidden_act for GGUF must be 'silu' or 'swish' in architecture qwen2, got 'gelu', ...",
        export(hidden_act="gelu"),
    ),
    Situation(
        "model folder whose frequencies follow the length of the text", "export --model FOLDER", "refused",
        "edgequant export: rope_type for GGUF must be default, linear or yarn, got 'dynamic', ...",
        export(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}),
    ),
    Situation(
        "model folder with sliding-window layers", "export --model FOLDER", "refused",
        "edgequant export: layer_types for GGUF must be full_attention in all layers in architecture qwen2, got ...",
        export(use_sliding_window=True, sliding_window=8, layer_types=["full_attention", "sliding_attention"]),
    ),
]  # fmt: skip
