"""PTQ by a peer, on the text that our PTQ is calibrated on, measured on the same tasks."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from peers.auto_round import auto_round_rows
from peers.bitsandbytes import bitsandbytes_rows
from peers.hqq import hqq_rows
from peers.llm_compressor import llmcompressor_rows
from peers.ptq_rows import Row, Setting
from peers.torchao import torchao_rows

from edgequant.evaluation.suite import evaluate_model
from edgequant.workflows.steps.measure import with_guard
from edgequant.workflows.steps.qat_experiment import QatExperiment

MAKERS: Mapping[str, Callable[[str, Setting], list[Row]]] = {
    "bitsandbytes": bitsandbytes_rows,
    "hqq": hqq_rows,
    "torchao": torchao_rows,
    "auto_round": auto_round_rows,
    "llmcompressor": llmcompressor_rows,
}


def peer_rows(name: str, scheme: str, experiment: QatExperiment, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way in which the peer does the scheme's linears; a line that says so where it is not installed."""
    if importlib.util.find_spec(name) is None:
        return [{"variant": name, "note": "not installed"}]
    try:
        made = MAKERS[name](scheme, _setting(experiment, options))
    except ImportError as error:
        return [{"variant": name, "note": f"cannot be imported: {error}"[:100]}]
    return [_as_row(row) for row in made]


def _setting(experiment: QatExperiment, options: argparse.Namespace) -> Setting:
    settings = with_guard(replace(experiment.evaluation, cache_dir=None))

    def scores(model: Any) -> dict[str, float]:
        return evaluate_model(model, experiment.tokenizer, experiment.data, settings).metrics

    given = cast(argparse.Namespace, SimpleNamespace(model=options.model, steps=options.peer_steps))
    calibration = torch.cat(experiment.calibration_batches).cpu()
    return Setting(given, experiment.floating, experiment.tokenizer, calibration, windows=None, scores=scores)


def _as_row(row: Row) -> dict[str, Any]:
    """The scheme is the row's own where the peer has another (bitsandbytes int8)."""
    cost = {"cost/seconds": row.seconds, "cost/peak_gb": row.peak_gb}
    shown = {name: value for name, value in cost.items() if value == value}
    # Weights lie in memory in all sorts of ways: what a checkpoint would take is said by the bits alone.
    quality = {name: value for name, value in row.metrics.items() if not name.startswith("size/")}
    found = {
        "variant": row.system,
        "metrics": quality | shown | {"size/linear_bits": row.bits},
        "note": row.note,
    }
    return found if row.scheme != "w8a8" else found | {"scheme": "w8a8"}
