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
import gc
import importlib
import importlib.util
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edgequant import models
from edgequant.corpora.benchmarks import load_boolq, load_squad, load_wikitext2
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.tasks.boolq import boolq_items
from edgequant.evaluation.tasks.perplexity import Scored, wikitext_perplexity
from edgequant.evaluation.tasks.squad import squad_items, squad_prompt
from edgequant.evaluation.tasks.squad_scoring import score_predictions
from edgequant.evaluation.tasks.wikitext import join_rows, wikitext_pages

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
WINDOW = 2048
TRIED_BATCHES = {"cuda": (32, 128, 256), "cpu": (1, 4, 16)}  # lm-eval: items
TRIED_TOKENS = {"cuda": (16_384, 65_536, 131_072), "cpu": (1_024, 4_096)}  # edgequant: tokens
TIE = 1e-3  # nats


@dataclass
class Side:
    """One side's result on one task: seconds, peak memory, score as text, and what is compared item by item."""

    seconds: float = math.nan
    peak_gb: float = math.nan
    batch: int = 0
    score: str = "-"
    values: Any = None


@dataclass
class Task:
    """One task on both sides. `ours` and `theirs` take (items, batch) and return (score, values)."""

    name: str
    items: int
    trial: int
    unit: str
    ours: Callable[[int, int], tuple[str, Any]]
    theirs: Callable[[int, int], tuple[str, Any]] | None = None
    compare: Callable[[Any, Any], str] = lambda ours, theirs: ""
    sides: dict[str, Side] = field(default_factory=dict)


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
    harness = Harness(loaded, folder) if importlib.util.find_spec("lm_eval") else None
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


# ----------------------------------------------------------------------------------------------------------- lm-eval


class Harness:
    """lm-evaluation-harness over local rows, with the prompts of its own task files."""

    def __init__(self, loaded: Any, folder: Path) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.loaded, self.folder = loaded, folder

    def boolq(self, rows: list[dict]) -> Any:
        """`tasks/super_glue/boolq/default.yaml`."""
        labeled = [{**row, "label": int(row["answer"])} for row in rows]
        config = {
            "output_type": "multiple_choice",
            "doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:",
            "doc_to_target": "label",
            "doc_to_choice": ["no", "yes"],
            "metric_list": [{"metric": "acc"}],
        }
        return self._task("boolq", labeled, config)

    def wikitext(self, pages: list[str]) -> Any:
        """`tasks/wikitext/wikitext.yaml`."""
        process = importlib.import_module("lm_eval.tasks.wikitext.preprocess_wikitext")
        config = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": process.wikitext_detokenizer,
            "process_results": process.process_results,
            "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        }
        return self._task("wikitext", [{"page": page} for page in pages], config)

    def squad(self, rows: list[dict]) -> Any:
        """The prompt of `tasks/squadv2`, greedy to the first line end or 32 tokens."""
        asked = [{"prompt": squad_prompt(row), "first": row["answers"]["text"][0]} for row in rows]
        config = {
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{first}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 32, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        }
        return self._task("squad", asked, config)

    def run(self, task: Any, count: int, batch: int) -> list[dict]:
        """One sample per document, in the documents' order."""
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM

        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=WINDOW)
        result = evaluator.evaluate(harness, task, limit=count, bootstrap_iters=0, log_samples=True)
        return sorted(next(iter(result["samples"].values())), key=lambda sample: sample["doc_id"])

    def _task(self, name: str, rows: list[dict], config: dict[str, Any]) -> Any:
        """Built once, outside what is timed: reading the task index takes lm-eval seconds."""
        from lm_eval.tasks import TaskManager

        file = self.folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        local = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(file)}, "cache_dir": str(self.folder / "cache")},
            "validation_split": "validation",
            "num_fewshot": 0,
        }
        return TaskManager().load([local | config])


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


def fastest(run: Callable[[int, int], tuple[str, Any]], task: Task, tried: tuple[int, ...]) -> Side:
    """Try the batch sizes on a part of the items (the first try also warms up), then run everything at the best."""
    part = min(task.items, task.trial if torch.cuda.is_available() else max(1, task.items // 4))
    seconds = {}
    if len(tried) > 1:
        timed(run, min(part, 32), tried[0])
        for batch in tried:
            try:
                seconds[batch] = timed(run, part, batch).seconds
            except torch.cuda.OutOfMemoryError:
                continue
    best = min(seconds, key=lambda batch: seconds[batch]) if seconds else tried[0]
    return timed(run, task.items, best)


def timed(run: Callable[[int, int], tuple[str, Any]], count: int, batch: int) -> Side:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    score, values = run(count, batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else math.nan
    return Side(seconds, peak, batch, score, values)


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
