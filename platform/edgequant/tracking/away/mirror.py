"""What this process knows of its runs, kept beside the server: who reads a run back while that is away reads this.

Requests and answers are those of MLflow's REST API, as mappings.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

Body = Mapping[str, Any]
WRITES = (
    *("CreateRun", "UpdateRun", "LogMetric", "LogParam", "LogBatch", "SetTag", "DeleteTag", "LogInputs"),
    "SetExperimentTag",
)
EXPERIMENTS = ("GetExperiment", "GetExperimentByName")
REMEMBERED = (*WRITES, "GetRun", *EXPERIMENTS)  # requests of which something is
SMALL = 1 << 18  # bytes of a file that are kept: tables that a run adds rows to
PLACE = "mlflow-artifacts:/unfiled/{}/artifacts"  # of the files of a run that the server does not know yet


@dataclass
class KnownRun:
    """A run as it is, or will be, in the store."""

    info: dict[str, Any]
    metrics: dict[str, Body] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[Body] = field(default_factory=list)
    files: dict[str, bytes | Path | None] = field(default_factory=dict)

    def as_answer(self) -> dict[str, Any]:
        """As the server tells it."""
        named = {name: [{"key": k, "value": v} for k, v in getattr(self, name).items()] for name in ("params", "tags")}
        data = {"metrics": list(self.metrics.values()), **named}
        return {"info": self.info, "data": data, "inputs": {"dataset_inputs": self.datasets}}


class Mirror:
    """Runs that this process began or goes on with, and experiments that it asked for."""

    def __init__(self) -> None:
        self.runs: dict[str, KnownRun] = {}
        self._experiments: dict[str, Body] = {}
        self._lock = threading.RLock()

    def saw(self, api: str, body: Body, answer: Body) -> None:
        """A request was answered: remember it if it is of a run of ours."""
        with self._lock:
            if api == "CreateRun" or (api == "GetRun" and answer["run"]["info"]["run_id"] in self.runs):
                self._learn(answer["run"])
            elif api in EXPERIMENTS and "experiment" in answer:
                self._experiments[answer["experiment"]["experiment_id"]] = answer["experiment"]
            elif api in WRITES:
                self.apply(api, body)

    def _learn(self, run: Body) -> None:
        info, data = dict(run["info"]), run.get("data", {})
        known = self.runs.setdefault(info["run_id"], KnownRun(info))
        known.info = info
        known.metrics = {each["key"]: each for each in data.get("metrics", ())}
        known.params = {each["key"]: each.get("value", "") for each in data.get("params", ())}
        known.tags = {each["key"]: each.get("value", "") for each in data.get("tags", ())}
        known.datasets = list(run.get("inputs", {}).get("dataset_inputs", ()))

    def begin(self, local: str, body: Body) -> None:
        """A run that the server will have under another id."""
        tags = {tag["key"]: tag.get("value", "") for tag in body.get("tags", ())}
        told = {name: body[name] for name in ("experiment_id", "user_id", "start_time", "run_name") if name in body}
        told.setdefault("run_name", tags.get("mlflow.runName", local))
        own = {"run_id": local, "run_uuid": local, "status": "RUNNING", "lifecycle_stage": "active"}
        with self._lock:
            self.runs[local] = KnownRun(told | own | {"artifact_uri": PLACE.format(local)}, tags=tags)

    def apply(self, api: str, body: Body) -> None:
        """What a request changes of a run."""
        run_id = body.get("run_id", body.get("run_uuid", ""))
        with self._lock:
            known = self.runs.get(run_id)
            if known is None:
                if api == "UpdateRun":  # of a run that goes on: the next answer tells what it has
                    self.runs[run_id] = KnownRun({"run_id": run_id, "run_uuid": run_id})
                return
            if api == "UpdateRun":
                known.info |= {name: body[name] for name in ("status", "end_time", "run_name") if name in body}
            known.metrics |= {each["key"]: each for each in body.get("metrics", ())}
            known.params |= {each["key"]: each.get("value", "") for each in body.get("params", ())}
            known.tags |= {each["key"]: each.get("value", "") for each in body.get("tags", ())}
            if api == "LogInputs":
                known.datasets += body.get("datasets", ())
            if api == "LogMetric":
                known.metrics[body["key"]] = {name: body[name] for name in ("key", "value", "timestamp", "step")}
            if api == "LogParam":
                known.params[body["key"]] = body.get("value", "")
            if api == "SetTag":
                known.tags[body["key"]] = body.get("value", "")
            if api == "DeleteTag":
                known.tags.pop(body["key"], None)

    def answer(self, api: str, body: Body) -> dict[str, Any] | None:
        """To a question that the server cannot answer for now; None where this process cannot either."""
        with self._lock:
            if api == "GetRun" and body.get("run_id") in self.runs:
                return {"run": self.runs[body["run_id"]].as_answer()}
            if api == "SearchLoggedModels":  # which our runs do not have, and MLflow looks for beside their files
                return {}
            if api == "SearchRuns" and self.runs:
                return {"runs": self._found(body)}
            if api == "SearchExperiments" and self.runs:
                ids = {known.info["experiment_id"] for known in self.runs.values() if "experiment_id" in known.info}
                return {"experiments": [self._experiments.get(id, {"experiment_id": id}) for id in sorted(ids)]}
            asked = {str(body.get("experiment_id")), body.get("experiment_name")}
            known = (each for each in self._experiments.values() if {each["experiment_id"], each.get("name")} & asked)
            found = next(known, None) if api in EXPERIMENTS else None
            return None if found is None else {"experiment": found}

    def _found(self, body: Body) -> list[dict[str, Any]]:
        from mlflow.entities import Run
        from mlflow.protos.service_pb2 import Run as Message
        from mlflow.utils.proto_json_utils import parse_dict
        from mlflow.utils.search_utils import SearchUtils

        told: dict[str, dict[str, Any]] = {}
        for id, known in self.runs.items():
            if known.info.get("experiment_id") in {*body.get("experiment_ids", ())}:
                told[id] = known.as_answer()
        messages = []
        for each in told.values():
            message = Message()
            parse_dict(json.loads(json.dumps(each)), message)
            messages.append(Run.from_proto(message))
        wanted = SearchUtils.filter(messages, body.get("filter"))
        ordered = SearchUtils.sort(wanted, body.get("order_by") or [])
        return [told[run.info.run_id] for run in ordered[: int(body.get("max_results", 1000))]]

    # --------------------------------------------------------------------------------------------------------- files

    def saw_file(self, run_id: str, path: str, file: Path, *, staged: bool) -> None:
        """A file of a run was filed, or waits (`staged`, where it lies until then)."""
        with self._lock:
            if (known := self.runs.get(run_id)) is not None:
                small = file.stat().st_size <= SMALL and file.suffix == ".json"
                known.files[path] = file.read_bytes() if small else file if staged else None

    def files(self, run_id: str, folder: str | None) -> list[tuple[str, bool]] | None:
        """(path, is a folder) of what a run of ours has in a folder; None of other runs."""
        with self._lock:
            if run_id not in self.runs:
                return None
            place, found = PurePosixPath(folder or "."), dict[str, bool]()
            for name in map(PurePosixPath, self.runs[run_id].files):
                if name != place and name.is_relative_to(place):
                    first = name.relative_to(place).parts[0]
                    found[(place / first).as_posix()] = place / first != name
            return sorted(found.items())

    def content(self, run_id: str, path: str) -> bytes | Path | None:
        """What is in a file of a run, or where it lies; None where this process does not know."""
        with self._lock:
            return self.runs[run_id].files.get(path) if run_id in self.runs else None
