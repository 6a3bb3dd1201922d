"""Gathering what a report compares: chosen runs or the newest ones, and what comes of them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.ranking import with_best
from edgequant.reporting.comparison import Comparison
from edgequant.reporting.findings.artifacts import Artifacts
from edgequant.reporting.findings.caveats import caveats
from edgequant.reporting.findings.paired import ItemTables, paired
from edgequant.reporting.findings.recovered import FRACTION, recovered
from edgequant.reporting.repeated import identity, of_the_model, repeats
from edgequant.tracking.search import PARENT_TAG, FinishedRun

MEASURING_WORKFLOWS = ("baseline", "ptq", "qat", "finetune", "evaluate")
OF_NO_MODEL = ("system/", "corpus/")  # metrics of machines and of data sets


def compare(ids: Sequence[str] = (), *, experiment: str | None = None) -> Comparison:
    """Gather runs for comparison.

    Args:
        ids: runs by id (the first characters are enough): workflow runs, whose measured models are taken, or single
            measured models. None: the newest finished run of each measuring workflow.
        experiment: look only there.

    Raises:
        UserError: an id that is not there or ambiguous, or nothing measured at all.
    """
    known = tracking.find_runs(experiment=experiment)
    chosen = [_by_id(known, given) for given in ids] if ids else _newest(known)
    everything = list({run.id: run for parent in chosen for run in _measured(parent, known)}.values())
    if ids and not everything:
        told = ", ".join(f"{run.id[:12]} ({run.workflow or run.name}, {run.status})" for run in chosen)
        raise UserError(
            f"runs must be finished ones that measured a model, got {told}; name those of `edgequant baseline`, ptq, "
            "qat, finetune or evaluate, or leave them out"
        )
    if not everything:
        raise UserError(
            "finished run with metrics not found; make one with `edgequant qat --model tiny` or `edgequant baseline`"
        )
    by_id = {run.id: run for run in known}
    owners = {run.id: by_id.get(run.tags.get(PARENT_TAG, ""), run) for run in everything}
    owners |= {run.id: run for run in everything if run.workflow}  # a workflow inside a pipeline stands for itself
    repeated = repeats(everything if ids else _newest_of_each(everything, owners), owners)
    shown = _ordered([run for run in everything if run.id in repeated])
    parents = sorted({owners[run.id].id: owners[run.id] for run in shown}.values(), key=lambda run: run.start_time)
    artifacts = Artifacts()
    rows = [_row(run, owners[run.id], repeated[run.id], artifacts) for run in shown]
    environments = {parent.id: artifacts.environment(parent.id) for parent in parents}
    gathered = Comparison(
        rows, shown, [owners[run.id] for run in shown], parents, [(run, owners[run.id]) for run in everything],
        environments, caveats(rows, shown, parents, environments),
    )  # fmt: skip
    return _with_findings(gathered, repeated, artifacts)


def _with_findings(
    gathered: Comparison, repeated: Mapping[str, Sequence[FinishedRun]], artifacts: Artifacts
) -> Comparison:
    """With paired comparisons, and the recovered fraction where it means something and nowhere else."""
    said: dict[int, str] = {}
    for at, row in enumerate(gathered.rows):
        row.pop(FRACTION, None)
        if row["variant"] == "qat":
            share, text = recovered(gathered, at, artifacts)
            row |= {} if share is None else {FRACTION: share}
            said |= {at: text} if text else {}
    kept = ItemTables(artifacts)
    items = [ChainMap(*(kept.of(each) for each in (run, *repeated[run.id]))) for run in gathered.runs]
    rows = with_best(gathered.rows, items)
    pairs, warnings = paired(gathered, kept), [*gathered.warnings, *artifacts.damaged]
    return replace(gathered, rows=rows, pairs=pairs, recovered=said, warnings=warnings)


def _by_id(known: list[FinishedRun], given: str) -> FinishedRun:
    found = [run for run in known if run.id.startswith(given.strip())] if given.strip() else []
    if len(found) != 1:
        if not found and (deleted := tracking.deleted_run(given.strip())):
            raise UserError(f"run {given!r} was deleted; {deleted}")
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
    rest = [run for run in known if run.id != parent.id]  # a tag that anybody can write may lead in a circle
    nested = [run for run in rest if run.tags.get(PARENT_TAG) == parent.id]
    variants = [run for run in nested if "edgequant.variant" in run.tags and _has_results(run)]
    inner = [run for child in nested if child.workflow in MEASURING_WORKFLOWS for run in _measured(child, rest)]
    found = sorted([*variants, *inner], key=lambda run: run.start_time)
    return found or ([parent] if _has_results(parent) else [])


def _has_results(run: FinishedRun) -> bool:
    ours = run.workflow or "edgequant.variant" in run.tags  # other tools log `eval/loss` and the like to the same store
    return bool(ours) and run.status == "FINISHED" and any(_is_of_a_model(name) for name in run.metrics)


def _is_of_a_model(metric: str) -> bool:
    return "/" in metric and not metric.startswith(OF_NO_MODEL)


def _newest_of_each(runs: list[FinishedRun], owners: Mapping[str, FinishedRun]) -> list[FinishedRun]:
    """A model that several workflows measured (the baseline, mostly) is shown as it was measured last.

    Two that one workflow measured are two, whatever they are called: folders of one model's checkpoints.
    """
    newest = {identity(run): owners[run.id].id for run in sorted(runs, key=lambda run: run.start_time)}
    return [run for run in runs if newest[identity(run)] == owners[run.id].id]


def _ordered(runs: list[FinishedRun]) -> list[FinishedRun]:
    """Model by model, each one's baseline first."""
    models = list(dict.fromkeys(identity(run)[0] for run in runs))
    return sorted(runs, key=lambda run: (models.index(identity(run)[0]), identity(run)[1] != "baseline"))


def _row(run: FinishedRun, owner: FinishedRun, again: Sequence[FinishedRun], artifacts: Artifacts) -> dict[str, Any]:
    """`again`: runs that measured the same model, of which one may have scored what this one did not."""
    measured = artifacts.details(run.id) | run.metrics
    for other in again:
        measured = of_the_model(artifacts.details(other.id) | other.metrics) | measured
    metrics = {name: value for name, value in measured.items() if _is_of_a_model(name)}
    return {
        "model": run.tags.get("edgequant.model") or run.params.get("cfg.model", ""),
        "variant": run.tags.get("edgequant.variant") or run.workflow,
        "scheme": run.tags.get("edgequant.scheme", ""),
        "run": f"{owner.workflow or owner.name} {owner.id[:8]}",
        **metrics,
        **_shipped(run, owner, artifacts),
    }


def _shipped(run: FinishedRun, owner: FinishedRun, artifacts: Artifacts) -> dict[str, Any]:
    """What ships, which the workflow knows of the model that it delivers."""
    is_delivered = owner.tags.get("edgequant.delivered") == run.tags.get("edgequant.variant")
    knows = owner if is_delivered and owner.id != run.id else run
    measured = artifacts.details(owner.id) | owner.metrics if knows is owner else {}
    found: dict[str, Any] = {name: value for name, value in measured.items() if name.startswith("deploy/")}
    if (format := knows.tags.get("edgequant.deploy_format", "none")) != "none":
        found["deploy/format"] = format
    return found
