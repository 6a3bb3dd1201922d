"""What the server takes at most. Light: read before the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from edgequant.errors import UserError
from edgequant.settings_checks import check_types


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Kept in MLmodel's `model_config`; SERVING_MODEL_CONFIG, a JSON object in the environment, overrides them.

    Raises:
        UserError: a limit that nothing passes.
    """

    body_megabytes: float = 4.0
    """Largest body of a request, in 10^6 bytes; what is larger gets status 413."""

    most_requests: int = 64
    """Requests that are answered or wait at once; one more gets status 503 and when to try again."""

    most_prompts: int = 64
    """Prompts in one request, and requests in one list or data frame."""

    def __post_init__(self) -> None:
        check_types(self, "serving")
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                value = getattr(self, field.name)
                raise UserError(f"serving.{field.name} must be above 0, got {value}; change SERVING_MODEL_CONFIG")


def limits_of(config: Mapping[str, Any]) -> Limits:
    """Those that `model_config` states, and the defaults for others: older versions state none."""
    return Limits(**{field.name: config[field.name] for field in fields(Limits) if field.name in config})
