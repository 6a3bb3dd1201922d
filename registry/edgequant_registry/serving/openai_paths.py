"""The paths that OpenAI's clients call, on MLflow's scoring server."""

from __future__ import annotations

import sys
from typing import Any

SERVER = "mlflow.pyfunc.scoring_server.app"
INVOCATIONS = "/invocations"
SAME_AS_INVOCATIONS = ("/v1/chat/completions", "/v1/completions")
MODELS = "/v1/models"


def offer_openai_paths(model: str) -> None:
    """Let the server that is about to start answer OpenAI's paths as it answers /invocations, and name its model.

    MLflow's server makes its app of `fastapi.FastAPI` as soon as the model has been loaded, and offers no way to add a
    path to it; so it finds a class with these paths under that name. Elsewhere than in that server nothing is changed.
    """
    if SERVER not in sys.modules:
        return
    import fastapi

    class WithOpenAIPaths(fastapi.FastAPI):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            listed = {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "edgequant"}]}
            self.get(MODELS)(lambda: listed)

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["path"] in SAME_AS_INVOCATIONS:
                scope = {**scope, "path": INVOCATIONS, "raw_path": INVOCATIONS.encode()}
            await super().__call__(scope, receive, send)

    fastapi.FastAPI = WithOpenAIPaths  # type: ignore[misc]
