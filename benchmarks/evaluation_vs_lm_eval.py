"""Scores and speed of edgequant's evaluation beside lm-evaluation-harness: same model, data and device, one run.

    python benchmarks/evaluation_vs_lm_eval.py --data_dir DATA                     # full sets; minutes on a GPU
    python benchmarks/evaluation_vs_lm_eval.py --data_dir DATA --limit 100         # a laptop
    python benchmarks/evaluation_vs_lm_eval.py --data_dir DATA --dtype bfloat16    # speed at the usual dtype

Runs without network: DATA holds wikitext-2/, boolq/ and squad/ in their official formats, lm-eval gets the same rows
from temporary files, with the prompts of its own tasks. Each side runs at the fastest of the batch sizes tried on part
of the items. Scores are compared in float32, where a difference is not rounding. `pip install lm_eval==0.4.13` for the
other side; without it only edgequant's column is filled.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "platform"))
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from peers.lm_eval import Harness
from peers.timed_sides import Task, fastest

from edgequant import models
from edgequant.corpora.benchmarks import load_boolq, load_squad, load_wikitext2
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.tasks.boolq import boolq_items
from edgequant.evaluation.tasks.perplexity import Scored, wikitext_perplexity
from edgequant.evaluation.tasks.squad import squad_items
from edgequant.evaluation.tasks.squad_scoring import score_predictions
from edgequant.evaluation.tasks.wikitext import join_rows, wikitext_pages

WINDOW = 2048
TRIED_BATCHES = {"cuda": (32, 128, 256), "cpu": (1, 4, 16)}  # lm-eval: items
TRIED_TOKENS = {"cuda": (16_384, 65_536, 131_072), "cpu": (1_024, 4_096)}  # edgequant: tokens
TIE = 1e-3  # nats


def main() -> None:
    arguments = parse_arguments()
    device = models.pick_device(arguments.device)
    loaded = models.load(arguments.model, dtype=arguments.dtype, device=device)
    with tempfile.TemporaryDirectory() as folder:
        tasks = make_tasks(loaded, arguments, Path(folder))
        for task in tasks:
            run_task(task, device.partition(":")[0], arguments)
        independent = independent_perplexity(loaded, arguments)
    print_report(tasks, independent, arguments, device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", default=os.environ.get("EDGEQUANT_DATA"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--limit", type=int, help="the first so many questions, and limit/20 pages and windows")
    parser.add_argument("--tasks", default="boolq,wikitext,squad")
    parser.add_argument("--batches", help="lm-eval batch sizes to try, e.g. 64,256")
    parser.add_argument("--tokens", help="edgequant's tokens per forward pass to try, e.g. 16384,65536")
    parser.add_argument("--output", help="JSON file that also receives the figures")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------------------- tasks


def make_tasks(loaded: Any, arguments: argparse.Namespace, folder: Path) -> list[Task]:
    harness = Harness(loaded, folder, WINDOW) if importlib.util.find_spec("lm_eval") else None
    if harness is None:
        print("lm_eval is not installed: only edgequant's side is measured (pip install lm_eval==0.4.13)")
    makers = {"boolq": boolq_task, "wikitext": wikitext_task, "squad": squad_task}
    return [makers[name](loaded, arguments, harness) for name in arguments.tasks.split(",")]


def boolq_task(loaded: Any, arguments: argparse.Namespace, harness: Harness | None) -> Task:
    rows = load_boolq("validation", arguments.data_dir)[: arguments.limit]
    task = harness and harness.boolq(rows)

    def ours(count: int, batch: int) -> tuple[str, Any]:
        items = boolq_items(scorer(loaded, batch), rows[:count])
        values = [(item["log_likelihood_no"], item["log_likelihood_yes"]) for item in items]
        return f"{100 * np.mean([item['correct'] for item in items]):.2f} %", values

    def theirs(count: int, batch: int) -> tuple[str, Any]:
        assert harness is not None
        samples = harness.run(task, count, batch)
        values = [tuple(float(response[0]) for response in sample["filtered_resps"]) for sample in samples]
        return f"{100 * np.mean([sample['acc'] for sample in samples]):.2f} %", values

    return Task("BoolQ", len(rows), 400, "items/s", ours, theirs if task else None, compare_choices)


def wikitext_task(loaded: Any, arguments: argparse.Namespace, harness: Harness | None) -> Task:
    text = load_wikitext2("test", arguments.data_dir)
    pages = wikitext_pages(join_rows(text, "raw"))[: arguments.limit and max(1, arguments.limit // 20)]
    task = harness and harness.wikitext(pages)

    def ours(count: int, batch: int) -> tuple[str, Any]:
        scored = wikitext_perplexity(
            scorer(loaded, batch), ["\n".join(pages[:count])], window=WINDOW, protocol="documents"
        )
        value = word_perplexity(scored)
        return f"{value:.4f}", value

    def theirs(count: int, batch: int) -> tuple[str, Any]:
        assert harness is not None
        samples = harness.run(task, count, batch)
        nats, words = np.sum([sample["word_perplexity"] for sample in samples], axis=0)
        value = math.exp(-nats / words)
        return f"{value:.4f}", value

    return Task(
        "WikiText-2, word perplexity", len(pages), 16, "pages/s", ours, theirs if task else None, compare_numbers
    )


def squad_task(loaded: Any, arguments: argparse.Namespace, harness: Harness | None) -> Task:
    rows = load_squad("validation", arguments.data_dir)[: arguments.limit]
    task = harness and harness.squad(rows)

    def ours(count: int, batch: int) -> tuple[str, Any]:
        items = squad_items(scorer(loaded, batch), rows[:count])
        return em_f1(items), [item["prediction"] for item in items]

    def theirs(count: int, batch: int) -> tuple[str, Any]:
        assert harness is not None
        samples = harness.run(task, count, batch)
        answers = [sample["filtered_resps"][0].split("\n")[0].strip() for sample in samples]
        given = {row["id"]: answer for row, answer in zip(rows, answers, strict=False)}
        return em_f1(score_predictions(rows[:count], given)), answers

    return Task("SQuAD, EM / F1", len(rows), 400, "items/s", ours, theirs if task else None, compare_answers)


def scorer(loaded: Any, tokens: int) -> TransformersModel:
    return TransformersModel(loaded.model, loaded.tokenizer, max_batch_tokens=tokens)


def word_perplexity(scored: Scored) -> float:
    nats, words = scored.columns("nats", "words").sum(axis=0)
    return math.exp(nats / words)


def em_f1(items: list[dict]) -> str:
    return f"{100 * np.mean([i['exact_match'] for i in items]):.2f} / {100 * np.mean([i['f1'] for i in items]):.2f}"


# --------------------------------------------------------------------------------------------------------- measuring


def run_task(task: Task, device: str, arguments: argparse.Namespace) -> None:
    tokens, batches = (
        tuple(map(int, given.split(","))) if given else tried[device]
        for given, tried in ((arguments.tokens, TRIED_TOKENS), (arguments.batches, TRIED_BATCHES))
    )
    plans = {"edgequant": (task.ours, tokens), "lm-eval": (task.theirs, batches)}
    for name, (run, tried) in plans.items():
        if run is not None:
            task.sides[name] = fastest(run, task, tried)
            print(f"{task.name}: {name} {task.sides[name].seconds:.2f} s at batch {task.sides[name].batch}", flush=True)


def compare_choices(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> str:
    a, b = np.array(ours), np.array(theirs)
    # argmax takes the first of equal scores, on both sides.
    differing = a.argmax(1) != b.argmax(1)
    ties = np.minimum(np.abs(a[:, 0] - a[:, 1]), np.abs(b[:, 0] - b[:, 1])) <= TIE
    return (
        f"{int((~differing).sum())} of {len(a)} predictions equal, "
        f"{int((differing & ~ties).sum())} differ without a tie; "
        f"largest log-likelihood difference {np.abs(a - b).max():.1e}"
    )


def compare_numbers(ours: float, theirs: float) -> str:
    return f"relative difference {abs(ours / theirs - 1):.1e}"


def compare_answers(ours: list[str], theirs: list[str]) -> str:
    return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} answers equal"


@torch.no_grad()
def independent_perplexity(loaded: Any, arguments: argparse.Namespace) -> str:
    """WikiText-2 perplexity by the plainest loop there is, beside ours under the same protocol."""
    rows = load_wikitext2("test", arguments.data_dir)
    windows = arguments.limit and max(1, arguments.limit // 20)
    scored = wikitext_perplexity(
        TransformersModel(loaded.model, loaded.tokenizer, bos="never"), rows, window=WINDOW, limit=windows
    )
    nats, tokens = scored.columns("nats", "tokens").sum(axis=0)
    device = next(loaded.model.parameters()).device
    ids = torch.tensor(loaded.tokenizer(join_rows(rows, "raw"), add_special_tokens=False)["input_ids"])
    total, count = 0.0, 0
    for row in scored.rows:
        start = int(row["id"].removeprefix("window-")) * WINDOW
        window = ids[start : start + WINDOW][None].to(device)
        logits = loaded.model(window).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").double().sum())
        count += WINDOW - 1
    ours, plain = math.exp(nats / tokens), math.exp(total / count)
    windows_read = f"{len(scored.rows)} windows of {WINDOW}"
    return f"{windows_read}: edgequant {ours:.6f}, plain loop {plain:.6f}, relative {abs(ours / plain - 1):.1e}"


# ------------------------------------------------------------------------------------------------------------- report


def print_report(tasks: list[Task], independent: str, arguments: argparse.Namespace, device: str) -> None:
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    table = Table(title=f"{arguments.model}, {arguments.dtype}, {hardware}, torch {torch.__version__}")
    for heading in ("task", "items", "", "score", "seconds", "rate", "batch", "peak GB", "faster"):
        table.add_column(heading, justify="left" if heading in ("task", "") else "right")
    for task in tasks:
        theirs = task.sides.get("lm-eval")
        for name, side in task.sides.items():
            rate = f"{task.items / side.seconds:.1f} {task.unit}"
            faster = f"{theirs.seconds / side.seconds:.2f}x" if theirs and name == "edgequant" else ""
            table.add_row(
                task.name, str(task.items), name, side.score, f"{side.seconds:.2f}", rate, str(side.batch),
                f"{side.peak_gb:.2f}", faster,
            )  # fmt: skip
    compared = {
        task.name: task.compare(*(task.sides[n].values for n in ("edgequant", "lm-eval")))
        for task in tasks
        if len(task.sides) == 2
    }
    if arguments.output:
        write_figures(arguments.output, tasks, compared, independent)
    for name, line in compared.items():
        print(f"{name}: {line}")
    print(f"WikiText-2 perplexity: {independent}")
    Console(width=150).print(table)


def write_figures(path: str, tasks: list[Task], compared: dict[str, str], independent: str) -> None:
    sides = {
        task.name: {name: {k: v for k, v in asdict(side).items() if k != "values"} for name, side in task.sides.items()}
        for task in tasks
    }
    Path(path).write_text(json.dumps({"tasks": sides, "compared": compared, "perplexity": independent}, indent=2))


if __name__ == "__main__":
    main()
