"""All the forms in which MLflow hands over requests: one, a list of them, a data frame, prompts alone."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgequant_registry.serving.answers import Engine, to_openai
from edgequant_registry.serving.requests import Request, parse

AT_ONCE = 8


def predict(engine: Engine, name: str, sent: Any) -> Any:
    """The response to a request, or the list of responses to several.

    Args:
        name: of the model, as the responses state it.
        sent: a request, a text, a list of these, or a data frame: its columns are a request's fields, or the first one
            holds prompts.

    Returns:
        OpenAI's response object for a request; the continuation alone for a text.

    Raises:
        BadRequestError: one of them cannot be answered; then none is.
    """
    if isinstance(sent, Mapping | str):
        return _respond(engine, name, sent, _parsed(sent))
    several = _records(sent) if hasattr(sent, "columns") else list(sent)
    requests = [_parsed(each) for each in several]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda pair: _respond(engine, name, *pair), zip(several, requests, strict=True)))


def _parsed(sent: Any) -> Request:
    return parse({"prompt": sent} if isinstance(sent, str) else _plain(sent))


def _respond(engine: Engine, name: str, sent: Any, request: Request) -> Any:
    answers = engine.answer(request)
    return answers[0].text if isinstance(sent, str) else to_openai(request, answers, name)


def _records(frame: Any) -> list[Any]:
    if not {"messages", "prompt"} & set(frame.columns):
        return [str(text) for text in frame.iloc[:, 0]]
    return list(frame.astype(object).where(frame.notna(), None).to_dict(orient="records"))


def _plain(value: Any) -> Any:
    """MLflow makes arrays of what lies in `inputs`, of single values too."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
