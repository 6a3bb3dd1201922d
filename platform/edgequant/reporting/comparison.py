"""What a report compares: chosen runs or the newest ones, as rows with metrics, and what limits the comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.evidence import floor_of, lacks_interval
from edgequant.reporting.columns import HIGH, LOW, is_finite
from edgequant.tracking.runs import PARENT_TAG
from edgequant.tracking.search import FinishedRun

MEASURING_WORKFLOWS = ("baseline", "ptq", "qat", "finetune", "evaluate")
ALL_RUNS = 20_000  # more than a laptop's store holds
SETTINGS = "cfg.evaluation."


@dataclass(frozen=True)
class Comparison:
    """Everything a report shows, gathered once.

    Attributes:
        rows: one per measured model: `model`, `variant`, `scheme`, `run` and the metrics.
        runs: the measured runs, in the rows' order.
        parents: the workflow runs that they belong to, oldest first.
        environments: machine and versions by parent's id, as logged; empty where a run logged none.
        warnings: what a reader has to know before believing a difference.
    """

    rows: list[dict[str, Any]]
    runs: list[FinishedRun]
    parents: list[FinishedRun]
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def compare(ids: Sequence[str] = (), *, experiment: str | None = None) -> Comparison:
    """Gather runs for comparison.

    Args:
        ids: runs by id (the first characters are enough): workflow runs, whose measured models are taken, or single
            measured models. None: the newest finished run of each measuring workflow.
        experiment: look only there.

    Raises:
        UserError: an id that is not there or ambiguous, or nothing measured at all.
    """
    known = tracking.find_runs(experiment=experiment, limit=ALL_RUNS)
    chosen = [_by_id(known, given) for given in ids] if ids else _newest(known)
    measured = [run for parent in chosen for run in _measured(parent, known)]
    if not ids:
        measured = _newest_of_each(measured)
    if not measured:
        raise UserError(
            "finished run with metrics not found; make one with `edgequant qat --model tiny` or "
            "`edgequant baseline`, or name runs with --runs"
        )
    by_id = {run.id: run for run in known}
    owners = {run.id: by_id.get(run.tags.get(PARENT_TAG, ""), run) for run in measured}
    owners |= {run.id: run for run in measured if run.workflow}  # a workflow inside a pipeline stands for itself
    parents = sorted({owner.id: owner for owner in owners.values()}.values(), key=lambda run: run.start_time)
    rows = [_row(run, owners[run.id]) for run in measured]
    environments = {parent.id: _environment(parent) for parent in parents}
    warnings = _warnings(rows, measured, parents, environments)
    return Comparison(rows, measured, parents, environments, warnings)


def _by_id(known: list[FinishedRun], given: str) -> FinishedRun:
    found = [run for run in known if run.id.startswith(given.strip())] if given.strip() else []
    if len(found) != 1:
        what = "not found" if not found else f"is ambiguous ({len(found)} runs begin so)"
        recent = ", ".join(f"{run.id[:12]} ({run.workflow})" for run in known if run.workflow)[:300]
        raise UserError(f"run {given!r} {what}; the newest workflow runs are {recent or 'none'}")
    return found[0]


def _newest(known: list[FinishedRun]) -> list[FinishedRun]:
    finished = [run for run in known if run.status == "FINISHED"]
    newest = [next((run for run in finished if run.workflow == name), None) for name in MEASURING_WORKFLOWS]
    return [run for run in newest if run is not None]


def _measured(parent: FinishedRun, known: list[FinishedRun]) -> list[FinishedRun]:
    """The models that a workflow measured, in the order in which it did; the run itself if it has no such children."""
    nested = [run for run in known if run.tags.get(PARENT_TAG) == parent.id]
    variants = [run for run in nested if "edgequant.variant" in run.tags and _has_results(run)]
    inner = [run for child in nested if child.workflow in MEASURING_WORKFLOWS for run in _measured(child, known)]
    found = sorted([*variants, *inner], key=lambda run: run.start_time)
    return found or ([parent] if _has_results(parent) else [])


def _has_results(run: FinishedRun) -> bool:
    return run.status == "FINISHED" and any("/" in name and not name.startswith("system/") for name in run.metrics)


def _newest_of_each(runs: list[FinishedRun]) -> list[FinishedRun]:
    """A model that several workflows measured (the baseline, mostly) is shown once, as it was measured last."""
    newest: dict[tuple[str, ...], FinishedRun] = {}
    for run in sorted(runs, key=lambda run: run.start_time):
        newest[_identity(run)] = run
    return [run for run in runs if newest[_identity(run)] is run]


def _identity(run: FinishedRun) -> tuple[str, ...]:
    return tuple(run.tags.get(f"edgequant.{key}", "") for key in ("model", "variant", "scheme"))


def _row(run: FinishedRun, owner: FinishedRun) -> dict[str, Any]:
    measured = tracking.details_of(run.id) | run.metrics
    metrics = {name: value for name, value in measured.items() if "/" in name and not name.startswith("system/")}
    return {
        "model": run.tags.get("edgequant.model") or run.params.get("cfg.model", ""),
        "variant": run.tags.get("edgequant.variant") or run.workflow,
        "scheme": run.tags.get("edgequant.scheme", ""),
        "run": f"{owner.workflow or owner.name} {owner.id[:8]}",
        **metrics,
    }


def _environment(parent: FinishedRun) -> dict[str, Any]:
    try:
        return dict(json.loads(tracking.download(f"runs:/{parent.id}/environment.json").read_text()))
    except (UserError, OSError, ValueError):
        return {}


def _warnings(
    rows: list[dict[str, Any]],
    runs: list[FinishedRun],
    parents: list[FinishedRun],
    environments: dict[str, dict[str, Any]],
) -> list[str]:
    said = [f"{run.name}: {text}" for run in (*parents, *runs) if (text := run.tags.get("edgequant.warnings"))]
    return [
        *dict.fromkeys(said),
        *_several_tokenizers(rows),
        *_different_settings(parents),
        *_different_machines(parents, environments),
        *_uncommitted(parents),
        *_without_interval(rows),
        *_at_the_floor(rows),
    ]


def _several_tokenizers(rows: list[dict[str, Any]]) -> list[str]:
    if len({row["model"] for row in rows}) < 2 or not any(key.endswith("/perplexity") for row in rows for key in row):
        return []
    return ["perplexity is per token: compare it within a model, and bits per byte between models"]


def _different_settings(parents: list[FinishedRun]) -> list[str]:
    """Metrics of different protocols are no comparison: say which setting differs, and how."""
    settings = [{k: v for k, v in run.params.items() if k.startswith(SETTINGS)} for run in parents]
    settings = [given for given in settings if given]
    names = sorted({name for given in settings for name in given})
    differing = []
    for name in names:
        values = list(dict.fromkeys(given.get(name, "not set") for given in settings))
        if len(values) > 1:
            differing.append(f"{name.removeprefix(SETTINGS)} ({' or '.join(values)})")
    if not differing:
        return []
    return [f"the runs were not evaluated alike; these settings differ: {', '.join(differing)}"]


def _different_machines(parents: list[FinishedRun], environments: dict[str, dict[str, Any]]) -> list[str]:
    def machine(run: FinishedRun) -> str:
        found = environments.get(run.id, {})
        gpus = ", ".join(found.get("gpus") or [])
        return gpus or (f"{found['cpu_count']} CPU cores" if found.get("cpu_count") else "")

    machines = list(dict.fromkeys(filter(None, map(machine, parents))))
    return [f"latencies come from different machines: {'; '.join(machines)}"] if len(machines) > 1 else []


def _uncommitted(parents: list[FinishedRun]) -> list[str]:
    dirty = [f"{run.workflow} {run.id[:8]}" for run in parents if run.tags.get("edgequant.git_dirty") == "true"]
    return [f"made with uncommitted changes to the code: {', '.join(dirty)}"] if dirty else []


def _without_interval(rows: list[dict[str, Any]]) -> list[str]:
    sampled = [key.removesuffix(LOW) for row in rows for key in row if key.endswith(LOW)]
    bare = [key for key in dict.fromkeys(sampled) if any(is_finite(r.get(key)) and (key + HIGH) not in r for r in rows)]
    bare += [key for row in rows for key in row if is_finite(row[key]) and lacks_interval(key, row)]
    if not bare:
        return []
    return [f"some rows have no confidence interval for {', '.join(dict.fromkeys(bare))}, and are no evidence by it"]


def _at_the_floor(rows: list[dict[str, Any]]) -> list[str]:
    found = list(dict.fromkeys(key for row in rows for key in row if floor_of(key, row)))
    return [f"some rows are not told from a model that knows nothing by {', '.join(found)}"] if found else []
