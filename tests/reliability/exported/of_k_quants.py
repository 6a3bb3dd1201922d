"""K-quants where they do not fit: names, widths, numbers and formats beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from of_checkpoints import checkpoint_of
from of_gguf import configured
from of_models import WEIGHTS
from safetensors.numpy import load_file, save_file
from situation import Place, Situation

DOWN = "model.layers.1.mlp.down_proj.weight"  # rows of 512, which K-quants hold


def command(*arguments: str) -> Callable[[Place], str]:
    return lambda place: place.edgequant(*arguments)


def tiny_with(place: Place, row: np.ndarray) -> Path:
    """`tiny` as a folder; a row of a down projection is another."""
    folder = configured(place)
    stored = load_file(folder / WEIGHTS)
    stored[DOWN][3] = row
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def with_a_row(row: np.ndarray) -> Callable[[Place], str]:
    return lambda place: place.edgequant("ptq", "--model", tiny_with(place, row), "--scheme", "q4_k")


def odd_rows_leave_as_they_are(place: Place) -> str:
    """Zeros, an outlier, constants and numbers below float16's: the file's own numbers, by the gguf package."""
    import gguf

    from edgequant import models
    from edgequant.quantization.layers.integer import integer_layers

    row = np.concatenate([np.zeros(256), np.full(64, -0.5), [90.0], np.full(191, 1e-9)]).astype(np.float32)
    tiny_with(place, row)
    checkpoint_of(place, "q4_k+embq6_k", "model")
    said = place.edgequant("export", "--model", "checkpoint", "--check", "false", "--output", "out")
    read = {one.name: one for one in gguf.GGUFReader(next(place.folder.glob("out/*.gguf"))).tensors}
    loaded = models.load(str(place.folder / "checkpoint"), dtype="float32", device="cpu")
    ours = integer_layers(loaded.model)[DOWN.removesuffix(".weight")].dequantized_weight().numpy()
    tensor = read["blk.1.ffn_down.weight"]
    assert tensor.tensor_type.name == "Q4_K"
    theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert np.array_equal(theirs, ours) and not theirs[3, :256].any()
    assert np.allclose(theirs[3, 256:320], -0.5, atol=0.01) and abs(theirs[3, 320] - 90) < 0.1
    return said


def widths_are_told(place: Place) -> str:
    return place.edgequant(
        *("ptq", "--model", "tiny", "--scheme", "q4_k+embq6_k", "--method", "rtn"),
        *("--evaluation.tasks", "[domain_perplexity]", "--evaluation.limit", "2", "--evaluation.window", "64"),
    )


def exported(scheme: str, *arguments: str) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        checkpoint_of(place, scheme)
        return place.edgequant("export", "--model", "checkpoint", "--check", "false", "--output", "out", *arguments)

    return run


def without_minima(place: Place) -> str:
    from edgequant.models.manifest import write_manifest
    from edgequant.quantization.scheme import parse_scheme

    folder = checkpoint_of(place, "q4_k")
    stored = load_file(folder / WEIGHTS)
    kept = {
        name: array
        for name, array in stored.items()
        if not name.endswith("1.mlp.down_proj.packed_weight.group_minimum")
    }
    assert len(kept) < len(stored)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    write_manifest(folder, parse_scheme("q4_k").to_dict())
    return place.edgequant("export", "--model", "checkpoint", "--check", "false", "--output", "out")


def read_back(place: Place) -> str:
    """A file with K-quants is a model like any other: its numbers are those that the gguf package reads."""
    import gguf

    place.edgequant("export", "--model", "tiny", "--format", "q6_k", "--check", "false", "--output", "first")
    said = place.edgequant("export", "--model", "first/tiny-q6_k.gguf", "--format", "f32", "--output", "out")
    first, second = (gguf.GGUFReader(next(place.folder.glob(f"{folder}/*.gguf"))) for folder in ("first", "out"))
    kept = {one.name: gguf.quants.dequantize(one.data, one.tensor_type) for one in first.tensors}
    assert any(one.tensor_type.name == "Q6_K" for one in first.tensors)
    assert all(np.array_equal(kept[one.name], one.data) for one in second.tensors)
    return said


UNKNOWN = "edgequant ptq: scheme '{}' is unknown. Did you mean {}? Known: ..."
SITUATIONS = [
    Situation(
        "llama.cpp's name of a file for a scheme", "ptq --scheme Q4_K_M", "refused", UNKNOWN.format("Q4_K_M", "q4_k"),
        command("ptq", "--model", "tiny", "--scheme", "Q4_K_M"),
    ),
    Situation(
        "a K-quant that is none of ours", "ptq --scheme q5_k", "refused",
        "edgequant ptq: scheme 'q5_k' is unknown. Did you mean ...? Known: ...",
        command("ptq", "--model", "tiny", "--scheme", "q5_k"),
    ),
    Situation(
        "groups for a K-quant, which has its own", "qat --scheme q4_k-g64", "refused",
        "edgequant qat: scheme 'q4_k-g64' is unknown. ...", command("qat", "--model", "tiny", "--scheme", "q4_k-g64"),
    ),
    Situation(
        "a K-quant for the embedding of another kind of scheme", "qat --scheme w4-g32+embq6_k", "refused",
        "edgequant qat: scheme 'w4-g32+embq6_k' is unknown. ...",
        command("qat", "--model", "tiny", "--scheme", "w4-g32+embq6_k"),
    ),
    Situation(
        "rows that 256 does not divide", "ptq --scheme q4_k+embq6_k", "told",
        "q4_k+embq6_k: K-quants need rows that 256 divides; of matrices with rows of 128, 12 of 15 become q4_1 for "
        "q4_k, 1 of 15 become q8_0 for q6_k", widths_are_told,
    ),
    Situation(
        "rows that not even 32 divides", "ptq --scheme q6_k", "refused",
        "edgequant ptq: group_size 32 of scheme q6_k does not divide the 80 input features of ...; use w6-g8, w6-g16 "
        "or w8",
        lambda place: place.edgequant("ptq", "--model", configured(place, intermediate_size=80), "--scheme", "q6_k"),
    ),
    Situation(
        "super-blocks of zeros, of constants, denormals and an outlier", "export --model CHECKPOINT", "read as meant",
        "format: q4_k keeps all integers (llama.cpp's format with the same integers)", odd_rows_leave_as_they_are,
    ),
    Situation(
        "a weight that is NaN where K-quants round", "ptq --scheme q4_k", "ended",
        "edgequant ptq: weights must be finite, got 512 of 65,536 that are NaN or infinite in ...mlp.down_proj...",
        with_a_row(np.full(512, np.nan, dtype=np.float32)),
    ),
    Situation(
        "a weight beyond what q4_k's minima reach", "ptq --scheme q4_k", "ended",
        "edgequant ptq: weights must have scales within float16, got 5,000,000 in model.layers.1.mlp.down_proj, ...",
        with_a_row(np.full(512, -5e6, dtype=np.float32)),
    ),
    Situation(
        "pruning in a layout that cannot say 0", "qat --scheme q4_k --qat.sparsity 0.5", "refused",
        "edgequant qat: qat.sparsity 0.5 does not fit scheme q4_k: its blocks begin at a real minimum ...",
        command("qat", "--model", "tiny", "--scheme", "q4_k", "--qat.sparsity", "0.5"),
    ),
    Situation(
        "a file for llama.cpp of K-quants with an embedding of ours", "ptq --scheme q4_k+emb8 --export gguf", "refused",
        "edgequant ptq: export gguf needs a scheme whose integers a GGUF file holds, such as ..., got q4_k+emb8; ...",
        command("ptq", "--model", "tiny", "--scheme", "q4_k+emb8", "--export", "gguf"),
    ),
    Situation(
        "a size budget for K-quants beside formats of fixed bits", "ptq --scheme q4_k+embq4_0 --size_budget ...",
        "refused",
        "edgequant ptq: size_budget 'bits_per_parameter=5' does not apply to q4_k+embq4_0, whose bits are fixed; ...",
        command("ptq", "--model", "tiny", "--scheme", "q4_k+embq4_0", "--size_budget", "bits_per_parameter=5"),
    ),
    Situation(
        "K-quants as compressed-tensors", "export --format compressed-tensors", "refused",
        "edgequant export: scheme q6_k cannot be written as compressed-tensors, ... no place for scales of scales; ...",
        exported("q6_k", "--format", "compressed-tensors"),
    ),
    Situation(
        "another format for K-quants", "export --format q8_0", "told",
        "format: q8_0 encodes the integers of q4_k+embq6_k again: linears as q8_0",
        exported("q4_k+embq6_k", "--format", "q8_0"),
    ),
    Situation(
        "a K-quant for a model whose rows do not fit", "export --format q4_k", "told",
        "note: not q4_k but q4_1 and q8_0: token_embd.weight, blk.0.attn_q.weight, ...",
        command("export", "--model", "tiny", "--format", "q4_k", "--check", "false", "--output", "out"),
    ),
    Situation(
        "a checkpoint of K-quants that lacks one tensor", "export --model CHECKPOINT", "refused",
        "edgequant export: ...group_minimum... missing...", without_minima,
    ),
    Situation(
        "a file of K-quants", "export --model q6_k.gguf --format f32", "read as meant", "...tiny-q6_k-f32.gguf...",
        read_back,
    ),
]  # fmt: skip
