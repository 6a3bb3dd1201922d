"""Whether the tracking store, the benchmarks' files and the model hub can be reached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from edgequant.disk.faults import existing
from edgequant.errors import UserError
from edgequant.workflows.checks.finding import Finding

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import DataSet

# Where the hub's clients keep what they fetched, if one of these is set.
HUB_CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE")


def tracking_store() -> list[Finding]:
    """The tracking URI, whether it answers, and where artifacts go."""
    from edgequant import tracking
    from edgequant.tracking.away.patience import patience_s

    uri = tracking.shown_store()
    try:
        patience_s()
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            return [Finding("tracking store", "ok", f"{uri} (made by the first run)")]
        experiments = tracking.all_pages(tracking.client().search_experiments)
    except UserError as error:
        found, _, fix = str(error).removeprefix("tracking store ").partition("; ")
        return [Finding("tracking store", "missing", found, fix)]
    findings = [Finding("tracking store", "ok", f"{uri}, {len(experiments)} experiments")]
    named = next((entry for entry in experiments if entry.name == "edgequant"), None)
    return [*findings, Finding("artifacts", "ok", named.artifact_location)] if named else findings


def benchmark_files(data_dir: str | None) -> list[Finding]:
    """The data folder and which benchmark files are in it."""
    folder = data_dir or os.environ.get("EDGEQUANT_DATA")
    if not folder:
        fix = "pass --data_dir or set EDGEQUANT_DATA; without, benchmarks come from the hub or are left out"
        return [Finding("data folder", "note", "none named", fix)]
    if not Path(folder).is_dir():
        return [Finding("data folder", "missing", f"{folder} is not a folder", "name a folder that exists, or none")]
    findings = [Finding("data folder", "ok", str(Path(folder).resolve()))]
    return findings + [_data_set(data_set, folder) for data_set in _looked_for()]


def _looked_for() -> list[DataSet]:
    """The tasks' data sets that may be absent, which those that edgequant brings cannot."""
    from edgequant.corpora.benchmarks import BENCHMARKS
    from edgequant.evaluation.tasks.guard import GUARD
    from edgequant.evaluation.tasks.registry import known_tasks

    data_sets = {data_set.name: data_set for task in known_tasks() for data_set in task.data}
    found = [data_set for name, data_set in data_sets.items() if data_set.load or name in BENCHMARKS]
    return [data_set for data_set in found if data_set.name != GUARD.data[0].name]  # which qat sets apart itself


def _data_set(data_set: DataSet, folder: str) -> Finding:
    from edgequant.corpora.benchmarks import find_local

    what = f"{data_set.name} {data_set.report}"
    found: object
    if data_set.load is None:
        found = find_local(data_set.name, data_set.report, folder)
        fix = f"put the official file under {folder}: docs/corpora.md says where each comes from"
    else:
        rows, package = data_set.load(data_set.report, folder), data_set.load.__module__.partition(".")[0]
        found, fix = rows and f"{len(rows):,} rows, by {package}", f"{package} says where they come from"
    return Finding(what, "ok", str(found)) if found else Finding(what, "note", "not there", fix)


def hub(offline: bool) -> list[Finding]:
    """Whether the model hub, or the mirror in HF_ENDPOINT, answers; whether what comes of it is kept and found."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = offline or bool(os.environ.get("HF_HUB_OFFLINE"))
    return [*_answering(endpoint, offline), *_hub_caches(offline)]


def _answering(endpoint: str, offline: bool) -> list[Finding]:
    from edgequant import tracking

    if offline:
        return [Finding("model hub", "note", f"{endpoint} not tried (offline)")]
    address = urlparse(endpoint)
    if tracking.answers(address.hostname, address.port or (443 if address.scheme == "https" else 80)):
        return [Finding("model hub", "ok", endpoint)]
    fix = "models and data sets by name need it; smollm2-135m, tiny and folders do not (HF_ENDPOINT names a mirror)"
    return [Finding("model hub", "note", f"{endpoint} does not answer", fix)]


def _hub_caches(offline: bool) -> list[Finding]:
    """Folders that are named for it and of no use: without a network, what is not there is nowhere."""
    named = {name: os.environ[name] for name in HUB_CACHES if os.environ.get(name)}
    found = {name: _wrong(Path(os.path.expandvars(text)).expanduser(), offline) for name, text in named.items()}
    fix = "name the folder that has them in {}, or leave it out for ~/.cache/huggingface"
    fix += "" if offline else "; a new one is made where that can be written to"
    effect = "models and data sets by name cannot be had"
    return [
        Finding("model hub's cache", "note", f"{name} {named[name]} {wrong}: {effect}", fix.format(name))
        for name, wrong in found.items()
        if wrong
    ]


def _wrong(folder: Path, offline: bool) -> str:
    """What keeps a folder from being one that models lie in; empty of what is good, or will be made."""
    try:
        nearest = folder if folder.exists() else existing(folder)
        there = os.listdir(nearest)
    except NotADirectoryError:
        return "is not a folder" if folder.exists() else "lies below a file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if offline and nearest != folder:
        return "does not exist"
    if offline and not there:
        return "is empty"
    if not offline and not os.access(nearest, os.W_OK | os.X_OK):
        return "cannot be written to"
    return ""
