"""Promote after the gates, stand a challenger beside the champion, roll back: each under a claim, with an entry in the
history."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from edgequant import tracking
from edgequant.errors import UserError
from edgequant_registry.aliases.claims import Claim, claimed
from edgequant_registry.aliases.history import Entry, new_entry, stints
from edgequant_registry.aliases.journal import CHALLENGER, CHAMPION, Standing, move, settle, standing
from edgequant_registry.evidence.filed import verified_checkpoint
from edgequant_registry.gates import Verdict
from edgequant_registry.packaging import make_servable
from edgequant_registry.policy import Policy
from edgequant_registry.records import mark_promoted, summary_of, write_verdicts
from edgequant_registry.versions import Registered

if TYPE_CHECKING:
    from mlflow import MlflowClient

REMEASURED_TAG = "edgequant.remeasured"
Outcome = Literal["promoted", "challenger", "refused", "overtaken"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the gates said of a version, and beside which one.

    Attributes:
        alias: that the version is to get.
        champion: version that the candidate was compared with; None: there was none.
        remeasured: whether its figures were measured again, and what became of it.
    """

    candidate: Registered
    alias: str
    champion: str | None
    policy: Policy
    verdicts: Sequence[Verdict]
    remeasured: str
    run_id: str

    @property
    def entry(self) -> dict[str, str]:
        """Of the history, but for the action."""
        return {
            "version": self.candidate.version,
            "run": self.run_id,
            "policy": f"{self.policy.name}@{self.policy.digest}",
            "why": summary_of(self.verdicts),
        }


class Outcomes(NamedTuple):
    """What became of a version; `said` where that is not what was asked for."""

    outcome: Outcome
    said: str = ""


def verify_checkpoint(version: Registered) -> Path:
    """Fetch a version's checkpoint and check the SHA-256 of every file, against its evidence where it has any.

    Returns:
        Where the files lie.

    Raises:
        UserError: a file is missing, damaged or another one, or there is no checkpoint; names the file.
    """
    return verified_checkpoint(version.uri, version.label, version.evidence)


def refuse(judged: Judgement) -> Outcomes:
    """Write down on the version why it is refused."""
    _write_verdicts(tracking.client(), judged, is_refused=True)
    return Outcomes("refused")


def promote_version(judged: Judgement) -> Outcomes:
    """Make a version servable and give it the alias, unless another promotion or rollback was faster.

    The alias `challenger` stands beside the champion; the version that becomes champion loses it. A version that passed
    and was overtaken gets it, if nobody has it.
    """
    candidate, alias = judged.candidate, judged.alias
    if judged.champion != candidate.version:
        make_servable(candidate.name, candidate.version)
    with claimed(candidate.name, f"giving version {candidate.version} the alias {alias}") as claim:
        found = settle(claim, *{alias, CHAMPION})
        _write_verdicts(claim.registry(), judged, is_refused=False)
        now = found.aliases.get(compared_with(alias))
        if now == candidate.version and alias != CHALLENGER:
            mark_promoted(
                claim, new_entry(found.entries, alias=alias, action="promoted", before=now, at="", **judged.entry)
            )
            return Outcomes("promoted", "" if now == judged.champion else _told_of(found, judged))
        if now != judged.champion:
            if alias == CHAMPION and CHALLENGER not in found.aliases:
                _stand_as_challenger(claim, found, judged)
            return Outcomes("overtaken", _told_of(found, judged))
        if alias == CHALLENGER:
            _stand_as_challenger(claim, found, judged)
            return Outcomes("challenger")
        move(claim, found, alias=alias, action="promoted", before=now, **judged.entry)
    return Outcomes("promoted")


def compared_with(alias: str) -> str:
    """The alias of the version that a candidate is compared with: a challenger with the champion, any other with the
    one that it replaces."""
    return CHAMPION if alias == CHALLENGER else alias


def _stand_as_challenger(claim: Claim, found: Standing, judged: Judgement) -> None:
    before = found.aliases.get(CHALLENGER)
    if before != judged.candidate.version:
        move(claim, found, alias=CHALLENGER, action="challenger", before=before, **judged.entry)


def _write_verdicts(registry: MlflowClient, judged: Judgement, *, is_refused: bool) -> None:
    version = judged.candidate
    registry.set_model_version_tag(version.name, version.version, REMEASURED_TAG, judged.remeasured)
    write_verdicts(
        registry, judged.candidate, judged.alias, judged.policy, judged.verdicts, judged.run_id, is_refused=is_refused
    )


def _told_of(found: Standing, judged: Judgement) -> str:
    alias = compared_with(judged.alias)
    was = f"version {judged.champion}" if judged.champion else "nobody"
    return f"{_present(found, alias)} while version {judged.candidate.version} was compared with {was}"


def _present(found: Standing, alias: str) -> str:
    """Who carries an alias by now, and since when."""
    version, line = found.aliases.get(alias), found.line(alias)
    if version is None or not line:
        return f"nobody is {alias} any more"
    last = [entry for entry in found.entries if entry.alias == alias and entry.state == "done"][-1]
    by = f" by run {last.run}" if last.run else ""
    return f"version {version} became {alias} ({last.action}{by} at {last.at})"


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What a rollback goes back to.

    Attributes:
        lost: version with the alias now; None: nobody has it.
        restored: the entry by which the earlier version had got it.
        skipped: versions in between that are no longer there.
    """

    name: str
    alias: str
    steps: int
    lost: str | None
    restored: Entry
    skipped: Sequence[str]


def plan_rollback(name: str, alias: str, steps: int) -> Rollback:
    """Find the version that carried an alias so many versions before.

    Raises:
        UserError: there is none.
    """
    return _plan(standing(name, alias), alias, steps)


def _plan(found: Standing, alias: str, steps: int) -> Rollback:
    lost, line = found.aliases.get(alias), found.line(alias)
    earlier = line[:-1] if lost is not None else line
    if steps > len(earlier):
        had = f"{len(earlier) or 'no'} earlier {alias}{'s are' if len(earlier) > 1 else ' is'} known and still there"
        raise UserError(
            f"{found.name} cannot be rolled back by {steps}: {had}; `edgequant promote --model "
            f"{shlex.quote(found.name)} --history true` tells who was, and --version promotes any version"
        )
    restored = earlier[-steps]
    since = {stint.version for stint in stints(found.entries, alias) if stint.number > restored.number}
    gone = sorted(version for version in since if version and version not in found.existing)
    return Rollback(name=found.name, alias=alias, steps=steps, lost=lost, restored=restored, skipped=gone)


def verify_restored(version: Registered, plan: Rollback) -> None:
    """Check the files of the version that a rollback goes back to.

    Raises:
        UserError: as `verify_checkpoint`; says how to go back further.
    """
    try:
        verify_checkpoint(version)
    except UserError as error:
        further = f"edgequant promote --model {shlex.quote(plan.name)} --rollback true --steps {plan.steps + 1}"
        raise UserError(
            f"{version.label} cannot be rolled back to: {error}; to go back further: `{further}`"
        ) from error


def roll_back(plan: Rollback, run_id: str) -> str:
    """Give the alias back to the earlier version, whose files the caller has checked.

    Returns:
        What happened instead, where the alias has moved since the plan was made; then nothing is done.
    """
    with claimed(plan.name, f"rolling {plan.alias} back to version {plan.restored.version}") as claim:
        found = settle(claim, plan.alias)
        if found.aliases.get(plan.alias) != plan.lost:
            return _present(found, plan.alias)
        again = _plan(found, plan.alias, plan.steps).restored
        why = f"{plan.steps} back from version {plan.lost}" if plan.lost else "nobody had the alias"
        values = {"alias": plan.alias, "version": again.version, "before": plan.lost, "resumes": again.number}
        move(claim, found, action="rolled back", policy=again.policy, run=run_id, why=why, **values)
    return ""
