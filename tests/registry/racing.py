"""A promoter in a process of its own, for tests of two at once."""

from __future__ import annotations

from typing import Any

from edgequant_registry import promotion
from edgequant_registry.gates import judge
from edgequant_registry.policy import Gate, Policy
from edgequant_registry.versions import get_version

POLICY = Policy(name="size", gates=(Gate(metric="size/checkpoint_gb", max=1),))


def judgement(name: str, version: str, champion: str | None, *, alias: str = "champion", run_id: str = "run") -> Any:
    """What a policy of one gate says of a version beside a champion: that it passes."""
    candidate = get_version(name, version)
    verdicts = judge(POLICY.gates, candidate.metrics, {})
    return promotion.Judgement(
        candidate=candidate, alias=alias, champion=champion, policy=POLICY, verdicts=verdicts, run_id=run_id,
        remeasured="no",
    )  # fmt: skip


def promote_each(names: list[str], version: str, start: Any, told: Any) -> None:
    """Promote a version of each model over its champion, version 1, each at the moment when the other process does."""
    promotion.make_servable = lambda name, version: None
    for name in names:
        judged = judgement(name, version, "1", run_id=f"promoter of {version}")
        start.wait(60)
        told.put((name, version, *promotion.promote_version(judged)))
