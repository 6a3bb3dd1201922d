"""All the forms in which MLflow hands over requests: one, a list of them, a data frame, prompts alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgequant_registry.serving.answers import Engine, to_openai
from edgequant_registry.serving.limits import Limits
from edgequant_registry.serving.messages import shown
from edgequant_registry.serving.refusal import BadRequestError, refusing
from edgequant_registry.serving.requests import Request, parse
from edgequant_registry.serving.waiting import Waiting, asking, seconds_of_a_request

AT_ONCE = 8

_log = logging.getLogger(__name__)


def predict(engine: Engine, name: str, limits: Limits, sent: Any) -> Any:
    """The response to a request, or the list of responses to several.

    Args:
        name: of the model, as the responses state it.
        sent: a request, a text, a list of these, or a data frame: its columns are a request's fields, or the first one
            holds prompts.

    Returns:
        OpenAI's response object for a request; the continuation alone for a text.

    Raises:
        UnansweredError: one of them cannot be answered; then none is.
    """
    waiting = asking.get() or Waiting(seconds_of_a_request())
    with refusing(_log, "a request must be an object with messages or a prompt, got lists without end"):
        return _answered(engine, name, limits, sent, waiting)


def _answered(engine: Engine, name: str, limits: Limits, sent: Any, waiting: Waiting) -> Any:
    if isinstance(sent, Mapping | str):
        return _respond(engine, name, sent, _parsed(sent, limits), waiting)
    several = _listed(sent)
    if len(several) > limits.most_prompts:
        raise BadRequestError(f"there must be at most {limits.most_prompts} requests in a list, got {len(several)}")
    requests = [_parsed(each, limits) for each in several]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda each, request: _respond(engine, name, each, request, waiting), several, requests))


def _listed(sent: Any) -> list[Any]:
    if hasattr(sent, "columns"):
        return _records(sent)
    if not isinstance(sent, list | tuple | np.ndarray) or np.ndim(sent) == 0:
        raise BadRequestError(f"requests must be an object, a text or a list of these, got {shown(sent)}")
    return list(sent)


def _parsed(sent: Any, limits: Limits) -> Request:
    request = parse({"prompt": sent} if isinstance(sent, str) else _plain(sent), limits)
    if request.stream:
        raise BadRequestError("stream must be left out of lists and of calls in Python; ask the server's /v1", "stream")
    return request


def _respond(engine: Engine, name: str, sent: Any, request: Request, waiting: Waiting) -> Any:
    answers = engine.answer(request, waiting)
    return answers[0].text if isinstance(sent, str) else to_openai(request, answers, name)


def _records(frame: Any) -> list[Any]:
    if not frame.shape[1]:
        raise BadRequestError("a data frame must have a column of prompts, or a request's fields, got none")
    if not {"messages", "prompt"} & set(frame.columns):
        return list(frame.iloc[:, 0])
    return list(frame.astype(object).where(frame.notna(), None).to_dict(orient="records"))


def _plain(value: Any) -> Any:
    """MLflow makes arrays of what lies in `inputs`, of single values too."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
