"""What is measured of a file in llama.cpp or a folder in ONNX Runtime: size, predictions, answers, times, memory."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from peers.ptq_rows import Row

from edge_rows.files import Key
from edgequant.evaluation.backends.llama_cpp_model import LlamaCppModel
from edgequant.evaluation.backends.onnx_model import OnnxModel
from edgequant.evaluation.efficiency.shipped import shipped_metrics
from edgequant.evaluation.evidence_file import kept_items
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.suite import Evaluation, evaluate_model
from edgequant.workflows.steps.data import evaluation_data

QUESTIONS = ("boolq", "squad")
TEXTS = ("perplexity", "domain_perplexity")
WINDOWS_PER_LIMIT = 20  # `EvaluationSettings.limit` draws a twentieth of it of windows


def measured_row(key: Key, file: Path, options: argparse.Namespace) -> Row:
    """Measure a file; prints what it found."""
    start = time.perf_counter()
    metrics = shipped_metrics(file, threads=options.threads, repetitions=options.repetitions)
    model = (OnnxModel if file.is_dir() else LlamaCppModel)(file, threads=options.threads)
    windows = options.windows and options.windows * WINDOWS_PER_LIMIT
    texts = _scores(model, TEXTS, options, windows)
    answers = _scores(model, QUESTIONS, options, options.limit or None)
    row = Row(key.system, f"seed {key.seed}", 0.0, metrics=metrics | texts.metrics | answers.metrics)
    row.items = kept_items(texts.items | answers.items)
    row.seconds, row.perplexity = time.perf_counter() - start, row.metrics["wikitext2/perplexity"]
    size = 1000 * metrics["deploy/size_gb"]
    print(f"{key.label:20} {key.seed} {size:7.1f} MB {row.perplexity:8.3f} {row.seconds:6.0f} s", flush=True)
    return row


def _scores(model: Any, tasks: tuple[str, ...], options: argparse.Namespace, limit: int | None) -> Evaluation:
    data = evaluation_data(tasks, options.data_dir)
    settings = EvaluationSettings(tasks=tasks, limit=limit, window=options.window)
    return evaluate_model(model, None, data, settings)
