"""What a reader has to know before believing a difference between runs."""

from __future__ import annotations

from typing import Any

from edgequant.evaluation.evidence import floor_of, lacks_interval
from edgequant.reporting.columns import HIGH, LOW, is_finite
from edgequant.tracking.search import FinishedRun

SETTINGS = "cfg.evaluation."


def caveats(
    rows: list[dict[str, Any]],
    runs: list[FinishedRun],
    parents: list[FinishedRun],
    environments: dict[str, dict[str, Any]],
) -> list[str]:
    """Warnings of the runs themselves, and what keeps them from being compared: protocols, machines, tokenizers, code.

    Args:
        rows, runs: measured models, in the same order.
        parents: the workflow runs that they belong to.
        environments: machine and versions by parent's id.
    """
    tags = [(run.name, run.tags.get("edgequant.warnings", "").split()) for run in (*parents, *runs)]
    said = [f"{name}: {' '.join(words)}" for name, words in tags if words]  # a tag that anybody can write
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
