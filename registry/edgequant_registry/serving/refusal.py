"""The one error that whoever sent a request is meant to read."""

from __future__ import annotations

import json

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST


class BadRequestError(MlflowException):
    """A request that cannot be answered: status 400, and one line that says what to send instead.

    Its body is read by MLflow's clients (`message`) and by OpenAI's (`error`).
    """

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason, error_code=BAD_REQUEST)
        self.reason, self.field = reason, field

    def serialize_as_json(self) -> str:
        """Without what MLflow's server would put in front: all that was sent."""
        error = {"message": self.reason, "type": "invalid_request_error", "param": self.field, "code": None}
        return json.dumps({"error_code": self.error_code, "message": self.reason, "error": error})


def no_template() -> BadRequestError:
    """For a chat with a model that has never seen one."""
    return BadRequestError(
        "messages need a model with a chat template, and this one has none; send a prompt", "messages"
    )


def too_long(tokens: int, context: int) -> BadRequestError:
    """For a prompt that leaves no room for an answer."""
    return BadRequestError(
        f"the prompt has {tokens} tokens, and with an answer it must fit a context of {context}; shorten it"
    )
