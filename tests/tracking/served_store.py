"""A tracking server in this process, as MLflow's own, which goes away and comes back within milliseconds."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import mlflow
from werkzeug.serving import make_server

VARIABLES = {
    "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
}


class Served:
    """Address `uri`; `start()`, `stop()`; `client` reads its database behind its back."""

    def __init__(self, database: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", database.parent
        self.client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")
        self.variables = VARIABLES | {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(self.folder / "artifacts"),
        }
        self.requests: list[str] = []
        self.unanswered: list[str] = []  # ends of addresses whose next request is done, and answered by 503
        self._server = None

    def start(self) -> None:
        from mlflow.server import app

        def counted(environ, respond):
            self.requests.append(environ["PATH_INFO"])
            lost = next((end for end in self.unanswered if environ["PATH_INFO"].endswith(end)), None)
            if lost is None:
                return app(environ, respond)
            self.unanswered.remove(lost)
            b"".join(app(environ, lambda *_: None))
            respond("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]

        self._server = make_server("127.0.0.1", self.port, counted, threaded=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextlib.contextmanager
    def in_environment(self) -> Iterator[None]:
        """Inside, this process's runs go to the server."""
        from mlflow.server import handlers
        from mlflow.tracking._model_registry import utils as registry
        from mlflow.tracking._tracking_service import utils as service

        stores = dict.fromkeys(("_tracking_store", "_model_registry_store", "_artifact_repo"))
        with (
            mock.patch.multiple(handlers, **stores),
            mock.patch.dict(os.environ, self.variables),
            mock.patch.object(service, "_tracking_uri", None),
            mock.patch.object(registry, "_registry_uri", None),
        ):
            handlers._get_tracking_store(), handlers._get_model_registry_store()  # which name their own as the store
            service._tracking_uri = registry._registry_uri = None
            os.environ["MLFLOW_TRACKING_URI"] = self.uri
            os.environ.pop("MLFLOW_REGISTRY_URI", None)
            yield
