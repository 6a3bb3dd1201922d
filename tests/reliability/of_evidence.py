"""Numbers that are no evidence: few items, floors, what is not finite, and weights that are no numbers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from situation import Place, Situation

WEIGHT = "model.layers.1.mlp.up_proj.weight"
SHORT = ("--evaluation.tasks", '["domain_perplexity"]', "--evaluation.window", "256")


def spans(place: Place, limit: int) -> str:
    """Ask `tiny`, which answers at random, some of as many questions as SQuAD has."""
    answers = [{"text": "the river", "answer_start": 0}]
    asked = [{"id": f"q{at}", "question": f"What rose on day {at}?", "answers": answers} for at in range(10_570)]
    articles = [
        {"title": f"Flood {at}", "paragraphs": [{"context": "the river rose", "qas": [question]}]}
        for at, question in enumerate(asked)
    ]
    return measured(place, "squad", limit, "dev-v1.1.json", json.dumps({"version": "1.1", "data": articles}))


def always_yes(place: Place, limit: int) -> str:
    """Some of as many questions as BoolQ has, all of them with the answer yes."""
    given = {"title": "River", "passage": "The river rose.", "answer": True}
    rows = [{"question": f"did the river rise on day {at}"} | given for at in range(3270)]
    return measured(place, "boolq", limit, "dev.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def measured(place: Place, task: str, limit: int, file: str, text: str) -> str:
    folder = place.folder / "data" / task
    folder.mkdir(parents=True)
    (folder / file).write_text(text)
    how = ("--evaluation.tasks", f'["{task}"]', "--limit", str(limit), "--evaluation.max_new_tokens", "4")
    return place.edgequant("evaluate", "--model", place.tiny_folder, "--data_dir", "data", "--cache", "false", *how)


def spoiled(place: Place, value: float, name: str = WEIGHT, *, all_of_it: bool = False) -> Path:
    """`tiny`'s folder with one number, or every one, of a weight replaced."""
    folder = place.folder / "spoiled"
    shutil.copytree(place.tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    changed = weights[name].float()
    changed.view(-1)[: None if all_of_it else 1] = value
    weights[name] = changed
    save_file({key: tensor.float().contiguous() for key, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def of_one_document(place: Place) -> str:
    said = place.edgequant("evaluate", "--model", place.tiny_folder, "--limit", "20", "--cache", "false", *SHORT)
    assert not any(line.strip().startswith("perplexity (domain)") and " to " in line for line in said.splitlines())
    return said


def overflowing(place: Place) -> str:
    """Finite weights whose loss is beyond what exp can hold."""
    folder = spoiled(place, 1.0)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors")
    return place.edgequant("evaluate", "--model", folder, "--limit", "40", "--cache", "false", *SHORT)


SITUATIONS = [
    Situation(
        "SQuAD: none of 20 questions answered",
        "evaluate --model FOLDER --limit 20",
        "told",
        "SQuAD exact match (%), 20 questions of 20 articles ... 0 (0 to 16.1), at the floor",
        lambda place: spans(place, 20),
    ),
    Situation(
        "SQuAD: one question",
        "evaluate --model FOLDER --limit 1",
        "told",
        "SQuAD exact match (%), 1 question of 1 article ... (no interval), at the floor",
        lambda place: spans(place, 1),
    ),
    Situation(
        "BoolQ: questions whose answer is always yes",
        "evaluate --model FOLDER --limit 6",
        "told",
        "BoolQ accuracy (%), 6 questions of 1 passage ..., at chance",
        lambda place: always_yes(place, 6),
    ),
    Situation(
        "perplexity of one document",
        "evaluate --model FOLDER --limit 20",
        "told",
        "perplexity (domain), 1 document ... (no interval)",
        of_one_document,
    ),
    Situation(
        "a model folder with a NaN weight",
        "ptq --model FOLDER --scheme w4-g32",
        "ended",
        f"edgequant ptq: weights must be finite, got 1 of 65,536 ... in {WEIGHT}; take another copy ...",
        lambda place: place.edgequant("ptq", "--model", spoiled(place, math.nan), "--scheme", "w4-g32", *SHORT),
    ),
    Situation(
        "a model folder with an infinite weight of a norm",
        "qat --model FOLDER",
        "ended",
        "edgequant qat: weights must be finite, got 1 of 128 that are NaN or infinite in model.norm.weight; ...",
        lambda place: place.edgequant("qat", "--model", spoiled(place, math.inf, "model.norm.weight")),
    ),
    Situation(
        "a model folder with a NaN weight, to be exported",
        "export --model FOLDER --format q8_0",
        "ended",
        f"edgequant export: weights must be finite, got 1 of 65,536 that are NaN or infinite in {WEIGHT}; ...",
        lambda place: place.edgequant("export", "--model", spoiled(place, math.nan), "--format", "q8_0"),
    ),
    Situation(
        "a weight of 70,000, to be exported as float16",
        "export --model FOLDER --format f16",
        "ended",
        f"edgequant export: weights must be within 65,504 for format f16, ..., got 70,000 in {WEIGHT}; use bf16 or f32",
        lambda place: place.edgequant("export", "--model", spoiled(place, 7e4), "--format", "f16"),
    ),
    Situation(
        "a weight of 70,000, loaded in float16",
        "evaluate --model FOLDER --dtype float16",
        "ended",
        f"edgequant evaluate: weights must be finite, ... in {WEIGHT}; ... dtype float32 or bfloat16 ...",
        lambda place: place.edgequant(
            "evaluate", "--model", spoiled(place, 7e4), "--dtype", "float16", "--limit", "20", *SHORT
        ),
    ),
    Situation(
        "a weight whose 4-bit scale float16 cannot hold",
        "ptq --model FOLDER --scheme w4-g32",
        "ended",
        "edgequant ptq: weights must have scales within float16, got 2,000,000 in model.layers.1.mlp.up_proj...",
        lambda place: place.edgequant(
            "ptq",
            "--model",
            spoiled(place, 2e6),
            "--scheme",
            "w4-g32",
            "--method",
            "rtn",
            "--evaluation.limit",
            "20",
            *SHORT,
        ),
    ),
    Situation(
        "a model whose perplexity is beyond all numbers",
        "evaluate --model FOLDER",
        "ended",
        "edgequant evaluate: domain/perplexity must be a finite number, got inf: the model is broken, ...",
        overflowing,
    ),
]
