"""What waited is filed: requests in their order, metrics of a run in batches, files, registrations."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from edgequant.errors import first_line
from edgequant.tracking.away import patience
from edgequant.tracking.away.journal import Entry, Journal, Waiting
from edgequant.tracking.registration import Registration

KEY = "edgequant.request"  # tag of a run on a server: finds it where the answer to the request that began it was lost
MOST_METRICS = 900  # of one request; MLflow takes 1,000
_changing, _changed = threading.Lock(), dict[str, tuple[int, str | None]]()  # environment variables, for all threads
UPLOAD_S = "600"  # a server may take long to pass a large file on
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def file_entries(journal: Journal, ids: dict[str, str]) -> int:
    """File all that a journal holds, as far as the server answers; to be called inside `at_once`.

    Args:
        ids: of runs that were begun meanwhile, here and there; those that are begun now are added.

    Returns:
        How many entries the server refused for good; they are kept beside.

    Raises:
        an error of which `is_away` is true: the rest still waits.
    """
    refused = 0
    ids |= journal.ids
    for batch in _batches(journal):
        entry = _merged(batch)
        try:
            _file(journal, entry, ids)
        except Exception as error:
            if patience.is_away(error):
                raise
            journal.refuse(entry, first_line(error))
            refused += 1
        journal.filed(batch[-1].end, len(batch))
    return refused


def _batches(journal: Journal) -> Iterator[list[Waiting]]:
    """Neighbours that hold nothing but metrics of one run go together."""
    batch: list[Waiting] = []
    for each in journal.waiting():
        if batch and (not _fits(batch, each)):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _fits(batch: list[Waiting], more: Waiting) -> bool:
    run = _run_of_metrics(more.entry)
    if run is None or run != _run_of_metrics(batch[0].entry):
        return False
    return sum(len(each.entry["body"]["metrics"]) for each in (*batch, more)) <= MOST_METRICS


def _run_of_metrics(entry: Entry) -> str | None:
    """The run of a request that logs metrics and nothing else."""
    body = entry.get("body", {})
    is_alone = entry.get("api") == "LogBatch" and not body.get("params") and not body.get("tags")
    return str(body["run_id"]) if is_alone and body.get("metrics") else None


def _merged(batch: list[Waiting]) -> Entry:
    first = batch[0].entry
    if len(batch) == 1:
        return first
    metrics = [metric for each in batch for metric in each.entry["body"]["metrics"]]
    return {"api": "LogBatch", "body": first["body"] | {"metrics": metrics}}


def _file(journal: Journal, entry: Entry, ids: dict[str, str]) -> None:
    told = json.loads(with_real_ids(json.dumps(entry), ids))
    if "file" in told:
        _upload(journal.folder / entry["file"], told["run"], told["folder"])
    elif "register" in told:
        Registration(**told["register"]).file(again=True)
    elif told["api"] == "CreateRun":
        if entry["local"] not in journal.ids:
            begun = existing(told["body"], told["key"]) or request(told["api"], told["body"])["run"]
            journal.note_run(entry["local"], str(begun["info"]["run_id"]))
        ids[entry["local"]] = journal.ids[entry["local"]]
    else:
        request(told["api"], told["body"])


def with_real_ids(text: str, ids: Mapping[str, str]) -> str:
    """A text with the ids that runs have in the store, wherever one of here stands."""
    for local, real in ids.items():
        text = text.replace(local, real)
    return text


def with_a_key(text: str, key: str) -> str:
    """The text of a request that begins a run, with a tag by which the run is found whose answer was lost."""
    body = json.loads(text)
    return json.dumps(body | {"tags": [*body.get("tags", ()), {"key": KEY, "value": key}]})


def request(api: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send one request of MLflow's API, named as its message is; the answer as a mapping."""
    from mlflow.protos import service_pb2
    from mlflow.tracking._tracking_service.utils import _get_store
    from mlflow.utils.proto_json_utils import message_to_json

    with sent_once() if api == "CreateRun" else nullcontext():
        answer = _get_store()._call_endpoint(getattr(service_pb2, api), json.dumps(body))
    return dict(json.loads(message_to_json(answer)))


def existing(body: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The run that an earlier request with this key had begun, whose answer was lost."""
    tag = next(tag["key"] for tag in body["tags"] if tag["value"] == key)
    asked = {"experiment_ids": [body["experiment_id"]], "filter": f"tags.`{tag}` = '{key}'", "max_results": 1}
    found = request("SearchRuns", asked).get("runs", ())
    return dict(found[0]) if found else None


def _upload(file: Path, run_id: str, folder: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = request("GetRun", {"run_id": run_id})["run"]["info"]["artifact_uri"]
    with longer_uploads():
        get_artifact_repository(place).log_artifact(str(file), folder or None)


def longer_uploads() -> AbstractContextManager[None]:
    """Inside, a request may take long: a server answers when it has passed the file on."""
    return _with(TIMEOUT, UPLOAD_S)


def sent_once() -> AbstractContextManager[None]:
    """Inside, MLflow does not send a request again by itself: the first may have been done, and not answered."""
    return _with(RETRIES, "0")


@contextmanager
def _with(name: str, value: str) -> Iterator[None]:
    """Inside, a variable has a value, for all threads; the last one to leave puts back what was there."""
    with _changing:
        inside, before = _changed.get(name, (0, os.environ.get(name)))
        _changed[name] = (inside + 1, before)
        os.environ[name] = value
    try:
        yield
    finally:
        with _changing:
            inside, before = _changed.pop(name)
            if inside > 1:
                _changed[name] = (inside - 1, before)
            elif before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before
