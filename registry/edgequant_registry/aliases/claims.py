"""One change of a model's aliases at a time, over a registry that has no locks.

MLflow's registry writes and reads single tags, and neither locks nor compares before it sets. So whoever wants to
change aliases writes a claim, a tag of its own name on the registered model, then reads all claims, and goes on where
there is no other. Of two writers the later reader sees both claims, so that never two go on at once; where both see
both, the one whose name comes first stays and the other withdraws, waits and comes again, so that one goes on. This
takes no more than reads that see finished writes, as SQLite and a tracking server give them.

A claim whose process on this machine is gone, or that stands for a minute, belongs to nobody: the next one removes it.
Who is stopped for so long finds that out before its next write.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from edgequant import tracking
from edgequant.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "edgequant.claim."
STALE_S = 60.0
PATIENCE_S = 90.0
POLL_S = 0.1


@dataclass(kw_only=True)
class Claim:
    """The right to change a model's aliases, while its tag stands.

    Attributes:
        purpose: what for, in words, for those who wait.
    """

    name: str
    purpose: str
    key: str = field(default_factory=lambda: f"{PREFIX}{uuid4().hex}")
    _first_seen: dict[str, float] = field(default_factory=dict)

    def registry(self) -> MlflowClient:
        """A client for one write.

        Raises:
            UserError: the claim is gone.
        """
        if self.key not in self._tags():
            raise UserError(
                f"the claim on {self.name} ({self.purpose}) was taken away, as if its owner were gone; the "
                "next `edgequant promote` finishes or undoes what it had begun"
            )
        return tracking.client()

    def wait(self) -> None:
        """Until no other claim stands.

        Raises:
            UserError: one stays; says whose.
        """
        ends = time.monotonic() + PATIENCE_S
        self._write()
        while others := self._others():
            if time.monotonic() > ends:
                raise UserError(f"{self.name} is being changed: {_told(others)}; nothing was changed, try again later")
            if self.key > min(others):
                self.withdraw()
                while self._others() and time.monotonic() <= ends:
                    _pause()
                self._write()
            else:
                _pause()

    def withdraw(self) -> None:
        tracking.client().delete_registered_model_tag(self.name, self.key)

    def _write(self) -> None:
        told = {"purpose": self.purpose, "process": tracking.this_process(), "since": now()}
        tracking.client().set_registered_model_tag(self.name, self.key, json.dumps(told))

    def _tags(self) -> dict[str, str]:
        return dict(tracking.client().get_registered_model(self.name).tags)

    def _others(self) -> dict[str, str]:
        """Claims of others; what belongs to nobody is removed."""
        standing = {key: told for key, told in self._tags().items() if key.startswith(PREFIX) and key != self.key}
        for key, told in list(standing.items()):
            seen = self._first_seen.setdefault(key, time.monotonic())
            if not _has_owner(told) or time.monotonic() - seen > STALE_S:
                tracking.client().delete_registered_model_tag(self.name, key)
                del standing[key]
        return standing


@contextlib.contextmanager
def claimed(name: str, purpose: str) -> Iterator[Claim]:
    """The right to change the aliases of a registered model, for the body.

    Raises:
        UserError: another one keeps it; says whose it is.
    """
    from mlflow.exceptions import MlflowException

    claim = Claim(name=name, purpose=purpose)
    try:
        claim.wait()
        yield claim
    finally:
        with contextlib.suppress(MlflowException):  # a store that is gone: the claim ends with this process
            claim.withdraw()


def now() -> str:
    """The time in UTC, as it is written down."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _has_owner(told: str) -> bool:
    try:
        return tracking.is_alive(json.loads(told)["process"])
    except (ValueError, KeyError, TypeError):
        return False


def _told(claims: dict[str, str]) -> str:
    found = json.loads(next(iter(claims.values())))
    return f"{found.get('purpose', 'a claim')}, by process {found['process']} since {found.get('since', '?')}"


def _pause() -> None:
    time.sleep(POLL_S * random.uniform(0.5, 1.5))
