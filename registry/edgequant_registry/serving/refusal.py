"""The errors that whoever sent a request is meant to read: a status, and one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR

LONGEST = 300  # characters of a line
INVALID = "invalid_request_error"
RETRY_S = 2


class UnansweredError(MlflowException):
    """A request without an answer.

    Its body is read by MLflow's clients (`error_code`, `message`) and by OpenAI's (`error`).
    """

    def __init__(
        self, reason: str, field: str | None = None, *, status: int, kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        line = " ".join(reason.split())
        self.reason, self.field = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}...", field
        super().__init__(self.reason, error_code=BAD_REQUEST if status < 500 else INTERNAL_ERROR)
        self.status, self.kind, self.headers = status, kind, dict(headers or {})

    def get_http_status_code(self) -> int:
        """As MLflow's server asks for it."""
        return self.status

    def serialize_as_json(self) -> str:
        """Without what MLflow's server would put in front: all that was sent."""
        error = {"message": self.reason, "type": self.kind, "param": self.field, "code": None}
        return json.dumps({"error_code": self.error_code, "message": self.reason, "error": error})


class BadRequestError(UnansweredError):
    """A request that cannot be answered as it is; the line says what to send instead."""

    def __init__(self, reason: str, field: str | None = None, *, status: int = 400) -> None:
        super().__init__(reason, field, status=status)


def no_template() -> BadRequestError:
    """For a chat with a model that has never seen one."""
    return BadRequestError(
        "messages need a model with a chat template, and this one has none; send a prompt", "messages"
    )


def too_long(tokens: int, context: int, *, at_least: bool = False) -> BadRequestError:
    """For a prompt that leaves no room for an answer."""
    number = f"at least {tokens}" if at_least else str(tokens)
    return BadRequestError(
        f"the prompt has {number} tokens, and with an answer it must fit a context of {context}; shorten it"
    )


def refuse_what_cannot_fit(characters: int, longest_token: int, context: int | None) -> None:
    """Refuse a text that no tokens could make short enough: to cut it into tokens takes a hundred times its memory.

    Args:
        longest_token: characters of the vocabulary's longest.

    Raises:
        BadRequestError: it has more tokens than a context.
    """
    least = -(-characters // longest_token)
    if context is not None and least >= context:
        raise too_long(least, context, at_least=True)


def no_such_token(token: int, vocabulary: int) -> BadRequestError:
    """For a prompt of token ids that are not the model's."""
    return BadRequestError(f"prompt must be texts or token ids from 0 to {vocabulary - 1}, got {token}", "prompt")


def too_large(megabytes: float) -> BadRequestError:
    """For a body that is not read to its end."""
    return BadRequestError(f"the body must be at most {megabytes:g} MB; send less at a time", status=413)


def crowded(requests: int) -> UnansweredError:
    """For one request more than the server takes."""
    headers = {"retry-after": str(RETRY_S)}
    reason = f"{requests} requests are being answered or wait already; try again in {RETRY_S} s"
    return UnansweredError(reason, status=503, kind="overloaded_error", headers=headers)


def too_late(seconds: float) -> UnansweredError:
    """For what could not be answered in time; asking the same again would take as long."""
    reason = f"not answered within {seconds:g} s (--timeout of the server); ask for fewer tokens"
    return UnansweredError(reason, status=504, kind="timeout_error", headers={"x-should-retry": "false"})


def client_gone() -> UnansweredError:
    """For a request whose client has closed the connection: nobody reads it."""
    return UnansweredError("the client has gone", status=499)


def server_ends() -> UnansweredError:
    """For what is left when the server is told to end."""
    headers = {"retry-after": str(RETRY_S)}
    return UnansweredError("the server is ending; ask another one", status=503, kind="server_error", headers=headers)


def model_failed() -> UnansweredError:
    """For an error that is nobody's who asks; what it was stands in the server's log."""
    reason = "the model could not answer because of an error of the server's; see its log"
    return UnansweredError(reason, status=500, kind="server_error")


@contextmanager
def refusing(log: logging.Logger, too_deep: str) -> Iterator[None]:
    """Around the work on a request: what goes wrong inside is logged, and told without its details.

    Args:
        too_deep: for what was sent in lists without end.
    """
    try:
        yield
    except UnansweredError:
        raise
    except RecursionError:
        raise BadRequestError(too_deep) from None
    except Exception as error:
        log.exception("edgequant: a request was not answered")
        raise model_failed() from error
