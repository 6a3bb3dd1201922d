"""Do filed figures reproduce? A model scores a sample of the same items again, and each has to score as before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgequant.evaluation.backends.language_model import LanguageModel
from edgequant.evaluation.evidence_file import Conditions, Evidence, Scores
from edgequant.evaluation.pairing import value_of
from edgequant.evaluation.tasks.registry import find_task
from edgequant.evaluation.tasks.task import Paired, Rows, Task

QUESTIONS, WINDOWS = 16, 2  # of each task; a `limit` draws a twentieth of itself as windows or documents
MOST_PER_CENT, LEAST_PER_CENT = 2.0, 0.5  # by which a perplexity moves between machines, at the most and at the least
# Answers of the sample that near ties turn where others share the batch, at the most and at the least: of SmolLM2 in
# bfloat16, 1.1 of 24 answers to SQuAD's questions. Never more than a quarter of the sample.
MOST_ITEMS, LEAST_ITEMS = 3.0, 2.0
LEAST_NATS = 0.1  # by which log-likelihoods of answers move between machines
EXACT = 1e-6  # of sizes, and of figures beside their items
SIZES = ("checkpoint_gb", "parameters", "bits_per_parameter", "reduction_vs_fp16", "reduction_vs_fp32")


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Whether figures were found again.

    Attributes:
        figures: beginning of the names of those that rest on it; empty for all of them.
        holds: False where they were not found again, or could not be measured.
        reason: what was found, in words.
    """

    figures: str
    holds: bool
    reason: str


def reproduced(
    model: LanguageModel, evidence: Evidence, conditions: Conditions, data: Mapping[str, Rows | str], folder: Path
) -> list[Reproduction]:
    """Measure a checkpoint's figures again, on the items that a small `limit` draws of those that it was measured on.

    Args:
        model: the checkpoint in `folder`, loaded.
        conditions: those of the evidence.
        data: by data set its rows, or why they are not there.

    Returns:
        A finding for each task that asks what a model knows, and one for its size; times are not taken again.
    """
    found = [_size(model, evidence.measured.metrics, folder)]
    for name in conditions.tasks:
        task = find_task(name)
        if task.kind == "quality" and any(task.owns(metric) for metric in evidence.measured.metrics):
            holds, reason = _again(task, model, evidence, conditions, data)
            found.append(Reproduction(figures=f"{task.group}/", holds=holds, reason=reason))
    return found


def _size(model: LanguageModel, filed: Mapping[str, float], folder: Path) -> Reproduction:
    found = model.footprint(folder)
    names = [f"size/{name}" for name in SIZES if f"size/{name}" in filed]
    wrong = [name for name in names if not math.isclose(found[name], filed[name], rel_tol=EXACT, abs_tol=EXACT)]
    told = f"{wrong[0]} is {found[wrong[0]]:.6g}, filed {filed[wrong[0]]:.6g}" if wrong else "size as filed"
    return Reproduction(figures="size/", holds=not wrong, reason=told)


def _again(
    task: Task,
    model: LanguageModel,
    evidence: Evidence,
    conditions: Conditions,
    data: Mapping[str, Rows | str],
) -> tuple[bool, str]:
    given = {each.name: data.get(each.name, "it was not given") for each in task.data if each.name in conditions.data}
    for name, rows in given.items():
        if isinstance(rows, str):
            return False, f"data set {name} cannot be measured on again: {rows}"
    paired = [each for each in task.paired if each.table in evidence.measured.items]
    settings = conditions.settings(limit=_limit(task, conditions, bool(paired)), tasks=(task.name,))
    scored = task.score(model, given, settings)
    if not paired:
        return _whole(task, evidence.measured.metrics, scored.metrics)
    return _all(_items(each, evidence, scored.items.get(each.table, [])) for each in paired)


def _limit(task: Task, conditions: Conditions, sampled: bool) -> int | None:
    """A smaller `limit` draws some of the items that a larger one does."""
    measured: int | None = conditions.protocol.get("limit")
    if not sampled:
        return measured
    wanted = QUESTIONS if any(each.drawn for each in task.data) else 20 * WINDOWS
    return wanted if measured is None else min(wanted, measured)


def _all(findings: Any) -> tuple[bool, str]:
    told = list(findings)
    failed = [reason for holds, reason in told if not holds]
    return not failed, "; ".join(failed or [reason for _, reason in told])


def _whole(task: Task, filed: Mapping[str, float], found: Mapping[str, float]) -> tuple[bool, str]:
    """Of a task that keeps no items: everything again, each figure within its interval."""
    names = [name for name in task.display if name in filed]
    for name in names:
        allowed = max(LEAST_PER_CENT / 100 * abs(filed[name]), _half_width(filed, name) or 0.0)
        if name not in found or not abs(found[name] - filed[name]) <= allowed:
            now = f"{found[name]:.4g}" if name in found else "not measured"
            return False, f"{name} is {now}, filed {filed[name]:.4g}"
    return True, f"{', '.join(names)} measured again"


def _items(paired: Paired, evidence: Evidence, rows: Sequence[Mapping[str, Any]]) -> tuple[bool, str]:
    filed = {row["id"]: row for row in evidence.measured.items[paired.table]}
    for whose, scores in (("", evidence.measured), ("the baseline's ", evidence.baseline)):
        if told := _contradiction(paired, scores):
            return False, f"{whose}{told}"
    lost = [str(row["id"]) for row in rows if row["id"] not in filed]
    if lost or not rows:
        return False, f"{paired.metric} was not measured on {lost[0] if lost else 'any item'} that its settings draw"
    pairs = [(filed[row["id"]], row) for row in rows]
    if paired.value is None:
        return _windows(paired.metric, pairs, evidence.measured.metrics)
    if paired.unit == "nats":
        return _nats(paired.metric, paired.value, pairs, evidence.measured.metrics)
    return _answers(paired.metric, paired.value, pairs, evidence.measured.metrics)


def _contradiction(paired: Paired, scores: Scores) -> str:
    """Where a figure is not what its own items come to."""
    rows, filed = scores.items.get(paired.table), scores.metrics.get(paired.metric)
    if not rows or filed is None:
        return ""
    value = value_of([dict(row) for row in rows], paired)
    return (
        "" if math.isclose(value, filed, rel_tol=EXACT) else f"{paired.metric} {filed:.6g} is {value:.6g} by its items"
    )


def _answers(
    metric: str, value: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], filed: Mapping[str, float]
) -> tuple[bool, str]:
    moved = sum(abs(before[value] - after[value]) for before, after in pairs)
    half = _half_width(filed, metric)
    most = min(MOST_ITEMS, max(LEAST_ITEMS, (half or 0.0) / 100 * len(pairs)), len(pairs) / 4)
    told = f"{metric} of {len(pairs)} of the same items: {moved:.3g} scored otherwise (at most {most:.3g})"
    return moved <= most, told


def _nats(
    metric: str, value: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], filed: Mapping[str, float]
) -> tuple[bool, str]:
    shifts = [abs(before[value] - after[value]) for before, after in pairs if before[value] == before[value]]
    moved, half = sum(shifts) / max(len(shifts), 1), _half_width(filed, metric)
    most = max(LEAST_NATS, half or 0.0)
    told = f"{metric} of {len(pairs)} of the same items: moved by {moved:.3g} nats (at most {most:.3g})"
    return moved <= most, told


def _windows(
    metric: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], filed: Mapping[str, float]
) -> tuple[bool, str]:
    if other := [str(after["id"]) for before, after in pairs if before["tokens"] != after["tokens"]]:
        return False, f"{metric}: {other[0]} has another number of tokens"
    tokens = sum(after["tokens"] for _, after in pairs)
    moved = sum(abs(before["nats"] - after["nats"]) for before, after in pairs) / tokens
    per_cent = 100 * math.expm1(moved) if moved < 1 else math.inf  # NaN says no to every comparison
    half = _half_width(filed, metric)
    most = MOST_PER_CENT if half is None else min(MOST_PER_CENT, max(LEAST_PER_CENT, 100 * half / filed[metric]))
    told = f"{metric} of {len(pairs)} of the same items: moved by {per_cent:.3g} % (at most {most:.3g})"
    return per_cent <= most, told


def _half_width(filed: Mapping[str, float], name: str) -> float | None:
    low, high = (filed.get(f"{name}_ci_{end}") for end in ("low", "high"))
    return None if low is None or high is None else (high - low) / 2
