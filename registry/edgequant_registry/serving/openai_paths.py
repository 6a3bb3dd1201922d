"""The paths that OpenAI's clients call, on MLflow's scoring server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from edgequant_registry.serving.refusal import BadRequestError

SERVER = "mlflow.pyfunc.scoring_server.app"
PATHS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}  # and the field that makes such a request
MODELS = "/v1/models"

Answering = Callable[[Any], Any]


def offer_openai_paths(model: str, answer: Answering) -> None:
    """Let the server that is about to start answer on OpenAI's paths as well, and name its model.

    MLflow's server makes its app of `fastapi.FastAPI` as soon as the model has been loaded, and offers no way to add a
    path to it; so it finds a class with these paths under that name. Elsewhere than in that server nothing is changed.

    Args:
        answer: the response object to a request.
    """
    if SERVER not in sys.modules:
        return
    import fastapi

    class WithOpenAIPaths(fastapi.FastAPI):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            for path, field in PATHS.items():
                self.add_route(path, partial(_respond, answer, field), methods=["POST"])
            self.add_route(MODELS, partial(_models, model), methods=["GET"])

    fastapi.FastAPI = WithOpenAIPaths  # type: ignore[misc]


async def _respond(answer: Answering, field: str, request: Any) -> Any:
    from fastapi.responses import JSONResponse, Response

    try:
        sent = _request(await request.body(), field)
        return JSONResponse(await asyncio.to_thread(answer, sent))
    except BadRequestError as refusal:
        return Response(refusal.serialize_as_json(), refusal.get_http_status_code(), media_type="application/json")


def _request(body: bytes, field: str) -> Mapping[str, Any]:
    try:
        sent = json.loads(body)
    except ValueError as error:
        raise BadRequestError(f"the body must be a JSON object, got {error}") from error
    if not isinstance(sent, Mapping) or field not in sent:
        raise BadRequestError(f"{field} must be in the body, a JSON object; add it", field)
    return sent


async def _models(model: str, request: Any) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse({"object": "list", "data": [{"id": model, "object": "model", "owned_by": "edgequant"}]})
