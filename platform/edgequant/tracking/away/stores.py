"""MLflow's own clients of a tracking server, made patient: what they cannot write waits, what they cannot read too."""

from __future__ import annotations

import functools
import json
import logging
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry, get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.store.tracking.rest_store import RestStore as TrackingStore
from mlflow.tracking._model_registry import utils as registry
from mlflow.tracking._tracking_service import utils as tracking
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.proto_json_utils import message_to_json, parse_dict

from edgequant.tracking.away.filing import existing, longer_uploads, sent_once, with_a_key, with_real_ids
from edgequant.tracking.away.journal import Entry, Journal
from edgequant.tracking.away.mirror import PLACE, REMEMBERED, WRITES
from edgequant.tracking.away.patience import at_once, is_direct
from edgequant.tracking.away.server import Server

SCHEMES = ("http", "https")
OURS = "mlflow-artifacts"
# MLflow's clients would repeat a request for four minutes, and wait two for an answer, while the work stands still.
QUICKER = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


@functools.cache
def server(uri: str) -> Server:
    """The server at an address, one for this process."""
    return Server(uri)


class _Beginning:
    """A request that begins a run: sent once, and again only where the server says that no run came of it."""

    def __init__(self, send: Callable[..., Any], api: Any, key: str) -> None:
        self._send, self._api, self._key, self._was_sent = send, api, key, False

    def __call__(self, text: str, *arguments: Any, **more: Any) -> Any:
        if self._was_sent:
            with at_once():
                found = existing(json.loads(text), self._key)
            if found is not None:
                answer = self._api.Response()
                parse_dict({"run": found}, answer)
                return answer
        self._was_sent = True
        with sent_once():
            return self._send(text, *arguments, **more)


class PatientTracking(TrackingStore):
    """Runs: what is written while the server is away waits; this process's own runs can be read all the same."""

    def __init__(self, uri: str) -> None:
        super().__init__(partial(get_default_host_creds, uri))
        self.server = server(uri)

    def _call_endpoint(self, api: Any, json_body: Any = None, *arguments: Any, **more: Any) -> Any:
        name, text, local = api.DESCRIPTOR.name, with_real_ids(json_body or "{}", self.server.ids), uuid.uuid4().hex
        direct: Callable[..., Any] = partial(TrackingStore._call_endpoint, self, api)
        if is_direct():
            return direct(text, *arguments, **more)
        if name == "CreateRun":
            text, direct = with_a_key(text, local), _Beginning(direct, api, local)

        def send() -> Any:
            answer = direct(with_real_ids(text, self.server.ids), *arguments, **more)
            if name in REMEMBERED:
                self.server.mirror.saw(name, json.loads(text), json.loads(message_to_json(answer)))
            return answer

        if name in WRITES:
            told = json.loads(text)
            answer = self.server.write(send, lambda _: self._kept(name, told, local))
            return self._known(api, name, told, local) if answer is None else answer
        return self.server.read(send, lambda: self._known(api, name, json.loads(text)))

    def _kept(self, name: str, body: dict[str, Any], local: str) -> Entry:
        if name != "CreateRun":
            self.server.mirror.apply(name, body)
            return {"api": name, "body": body}
        self.server.mirror.begin(local, body)
        return {"api": name, "body": body, "local": local, "key": local}

    def _known(self, api: Any, name: str, body: dict[str, Any], local: str = "") -> Any | None:
        message, asked = api.Response(), {"run_id": local} if name == "CreateRun" else body
        if name not in ("CreateRun", "UpdateRun"):
            found = {} if name in WRITES else self.server.mirror.answer(name, body)
        else:
            found = self.server.mirror.answer("GetRun", asked)
            found = {"run_info": found["run"]["info"]} if found and name == "UpdateRun" else found
        return None if found is None else parse_dict(json.loads(json.dumps(found)), message) or message


class PatientRegistry(RegistryStore):
    """Registered models: a request waits until the server is back."""

    def __init__(self, uri: str) -> None:
        super().__init__(partial(get_default_host_creds, uri))
        self.server = server(uri)

    def _call_endpoint(self, api: Any, json_body: Any, *arguments: Any, **more: Any) -> Any:
        def send() -> Any:
            text = with_real_ids(json_body or "{}", self.server.ids)
            return RegistryStore._call_endpoint(self, api, text, *arguments, **more)

        return send() if is_direct() else self.server.read(send, lambda: None)


class PatientArtifacts(MlflowArtifactsRepository):
    """Files of runs, sent through the server: what cannot be sent is kept until it can be."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self.server = server(tracking_uri or str(tracking.get_tracking_uri()))
        run, _, below = artifact_uri.partition("/artifacts")
        self.run_id, self.below = PurePosixPath(run).name, below.strip("/")

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        file, folder = Path(local_file), "/".join(filter(None, [self.below, artifact_path]))
        path = f"{folder}/{file.name}".lstrip("/")

        def send() -> bool:
            with longer_uploads():
                self._there().log_artifact(local_file, artifact_path)
            self.server.mirror.saw_file(self.run_id, path, file, staged=False)
            return True

        def kept(journal: Journal) -> Entry:
            place = journal.stage(file)
            self.server.mirror.saw_file(self.run_id, path, journal.folder / place, staged=True)
            return {"file": place, "run": self.run_id, "folder": folder}

        if is_direct():
            super().log_artifact(local_file, artifact_path)
        else:
            self.server.write(send, kept)

    def list_artifacts(self, path: str | None = None) -> list[Any]:
        from mlflow.entities import FileInfo

        def known() -> list[Any] | None:
            found = self.server.mirror.files(self.run_id, "/".join(filter(None, [self.below, path])))
            inner = [(name.removeprefix(self.below).lstrip("/"), is_folder) for name, is_folder in found or ()]
            return None if found is None else [FileInfo(name, is_folder, None) for name, is_folder in inner]

        if is_direct():
            return list(super().list_artifacts(path))
        return list(self.server.read(lambda: self._there().list_artifacts(path), known))

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        def known() -> bool | None:
            path = "/".join(filter(None, [self.below, remote_file_path]))
            found = self.server.mirror.content(self.run_id, path)
            if found is None:
                return None
            Path(local_path).write_bytes(found if isinstance(found, bytes) else found.read_bytes())
            return True

        def send() -> bool:
            self._there()._download_file(remote_file_path, local_path)
            return True

        if is_direct():
            super()._download_file(remote_file_path, local_path)
        else:
            self.server.read(send, known)

    def _there(self) -> Any:
        """The server's place of these files: of a run that began while it was away, known since it is back."""
        if self.run_id not in self.server.ids and PLACE.format(self.run_id).rpartition("/")[0] not in self.artifact_uri:
            return super()
        run = tracking._get_store(self.tracking_uri).get_run(self.run_id)
        return get_artifact_repository(f"{run.info.artifact_uri}/{self.below}".rstrip("/"), self.tracking_uri)


@functools.cache
def install() -> None:
    """From now on this process's clients of tracking servers are patient; databases and folders are as they were."""
    for name, value in QUICKER.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for every try
    registries = (tracking._tracking_store_registry, registry._get_store_registry())
    for stores, kind in zip(registries, (PatientTracking, PatientRegistry), strict=True):
        for scheme in SCHEMES:
            stores.register(scheme, lambda store_uri, kind=kind, **_: kind(store_uri))
        stores._get_store_with_resolved_uri.cache_clear()
    _artifact_repository_registry.register(OURS, PatientArtifacts)
    tracking._artifact_repos_cache.clear()
