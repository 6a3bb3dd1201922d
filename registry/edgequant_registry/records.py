"""What a version says of its own promotion: tags, and a description unless a person wrote one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgequant import tracking
from edgequant.workflows.steps.register import MADE
from edgequant_registry.aliases.history import Entry
from edgequant_registry.gates import Verdict
from edgequant_registry.policy import Policy
from edgequant_registry.versions import Registered

if TYPE_CHECKING:
    from edgequant_registry.aliases.claims import Claim

TAG = "edgequant.promotion"
MARKS = ("Promoted to ", "Refused as ", "Rolled back from ", "Passed as ")  # how descriptions of ours begin
LENGTH = 4500  # characters of tags and descriptions; stores take 5,000


def summary_of(verdicts: Sequence[Verdict]) -> str:
    """Verdicts in a line: how many of each kind, and which gates are broken."""
    counts = Counter(verdict.word for verdict in verdicts)
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    broken = [verdict.said for verdict in verdicts if verdict.is_broken]
    return f"{len(verdicts)} gates: {told}" + "".join(f"; {reason}" for reason in broken)


def write_verdicts(
    registry: Any,
    version: Registered,
    alias: str,
    policy: Policy,
    verdicts: Sequence[Verdict],
    run_id: str,
    *,
    is_refused: bool,
) -> None:
    """What the gates said of a version, before anything moves."""
    tags = {
        "edgequant.policy": f"{policy.name}@{policy.digest}",
        "edgequant.gates": _short(verdicts),
        TAG: "refused" if is_refused else "passed",
    }
    if is_refused:
        tags["edgequant.refused_by"] = run_id
    for key, value in tags.items():
        registry.set_model_version_tag(version.name, version.version, key, value)
    mark = "Refused as" if is_refused else "Passed as"
    headline = f"{mark} {alias} under policy {policy.name} ({policy.digest}):"
    judged = [verdict for verdict in verdicts if verdict.outcome != "not asked for"]
    reasons = [f"- {each.word}: {each.said}" for each in sorted(judged, key=lambda one: not one.blocks)]
    if silent := dict.fromkeys(each.gate.metric for each in verdicts if each not in judged):
        reasons.append(f"- not asked for: {', '.join(silent)}")
    _describe(registry, version.name, version.version, headline, reasons)


def mark_promoted(claim: Claim, entry: Entry) -> None:
    """On the version that an alias went to."""
    told = "challenger" if entry.action == "challenger" else "promoted"
    _tag(claim, str(entry.version), {TAG: told, "edgequant.promoted_by": entry.run})
    how = "Passed as" if entry.action == "challenger" else "Promoted to"
    under = f" under policy {entry.policy}" if entry.policy else ", by a rollback"
    _headline(claim, str(entry.version), f"{how} {entry.alias}{under}:")


def mark_rolled_back(claim: Claim, version: str, entry: Entry) -> None:
    """On a version that a rollback took the alias from."""
    _tag(claim, version, {TAG: "rolled back", "edgequant.rolled_back_by": entry.run})
    _headline(claim, version, f"Rolled back from {entry.alias}, which version {entry.version} is again:")


def _tag(claim: Claim, version: str, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        claim.registry().set_model_version_tag(claim.name, version, key, value)


def _headline(claim: Claim, version: str, headline: str) -> None:
    written = tracking.client().get_model_version(claim.name, version).description or ""
    reasons = [line for line in written.partition(MADE)[0].splitlines() if line.startswith("- ")]
    _describe(claim.registry(), claim.name, version, headline, reasons if written.startswith(MARKS) else [])


def _describe(registry: Any, name: str, version: str, headline: str, reasons: Sequence[str]) -> None:
    """Above what `register_version` wrote; what a person wrote stays."""
    written = registry.get_model_version(name, version).description or ""
    if written and not written.startswith((*MARKS, MADE)):
        return
    made = written[written.find(MADE) :] if MADE in written else ""
    room = LENGTH - len(headline) - len(made)
    kept: list[str] = []
    for reason in reasons:
        room -= len(reason) + 1
        if room < 0:
            break
        kept.append(reason)
    text = "\n".join([headline, "", *kept, "", made]).rstrip()
    registry.update_model_version(name, version, description=text)


def _short(verdicts: Sequence[Verdict]) -> str:
    """As JSON, with the reasons of broken gates; those first where not all gates find room."""
    rows = [_row(verdict) for verdict in verdicts]
    if len(json.dumps(rows)) > LENGTH:
        rows = [_row(verdict) for verdict in sorted(verdicts, key=lambda one: not one.blocks)]
    while len(text := json.dumps(rows)) > LENGTH:
        rows.pop()
    return text


def _row(verdict: Verdict) -> dict[str, Any]:
    return verdict.to_row() if verdict.is_broken else verdict.to_short_row()
