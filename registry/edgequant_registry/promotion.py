"""Moving the alias: promote after the gates, roll back to what was there before."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.workflows.steps.register import MADE
from edgequant_registry.evidence import verified_checkpoint
from edgequant_registry.gates import Verdict
from edgequant_registry.packaging import make_servable
from edgequant_registry.policy import Policy
from edgequant_registry.versions import Registered, get_version, with_alias

MARK = "Promoted to "  # how descriptions of ours begin; one written by a person is left alone
REPLACED_TAG = "edgequant.promoted_over"


def previous(alias: str) -> str:
    """Alias of the version that carried `alias` before."""
    return f"previous_{alias}"


def verify_checkpoint(version: Registered) -> str:
    """Fetch a version's checkpoint and check the SHA-256 of every file, against its evidence where it has any.

    Returns:
        What was found, in words.

    Raises:
        UserError: a file is missing, damaged or another one, or there is no checkpoint; names the file.
    """
    _, count = verified_checkpoint(version.uri, version.label, version.evidence)
    return f"{count} files have the SHA-256 that was filed with them"


def promote_version(
    candidate: Registered, alias: str, policy: Policy, verdicts: Sequence[Verdict], run_id: str
) -> bool:
    """Make a version servable, give it the alias, and write down why; the version before keeps `previous_<alias>`.

    Returns:
        False when it carried the alias already: then only the record is renewed.
    """
    registry = tracking.client()
    champion = with_alias(candidate.name, alias)
    moved = champion is None or champion.version != candidate.version
    if moved:
        make_servable(candidate.name, candidate.version)
        if champion is not None:
            registry.set_model_version_tag(candidate.name, candidate.version, REPLACED_TAG, champion.version)
            registry.set_registered_model_alias(candidate.name, previous(alias), champion.version)
        registry.set_registered_model_alias(candidate.name, alias, candidate.version)
    record(candidate, policy, verdicts, run_id, promoted=True)
    _describe(candidate, alias, policy, verdicts)
    return moved


def record(candidate: Registered, policy: Policy, verdicts: Sequence[Verdict], run_id: str, *, promoted: bool) -> None:
    """What the gates said, as tags of the version."""
    tags = {
        "edgequant.promotion": "promoted" if promoted else "refused",
        "edgequant.promoted_by" if promoted else "edgequant.refused_by": run_id,
        "edgequant.policy": f"{policy.name}@{policy.digest}",
        "edgequant.gates": json.dumps([verdict.to_row() for verdict in verdicts])[:5000],
    }
    for key, value in tags.items():
        tracking.client().set_model_version_tag(candidate.name, candidate.version, key, value)


def _describe(candidate: Registered, alias: str, policy: Policy, verdicts: Sequence[Verdict]) -> None:
    registry = tracking.client()
    written = registry.get_model_version(candidate.name, candidate.version).description or ""
    if written and not written.startswith((MARK, MADE)):
        return
    lines = [f"{MARK}{alias} under policy {policy.name} ({policy.digest}):", ""]
    lines += [f"- {verdict.gate.metric}: {verdict.reason}" for verdict in verdicts]
    made = written[written.find(MADE) :] if MADE in written else ""
    registry.update_model_version(candidate.name, candidate.version, description="\n".join([*lines, "", made]).rstrip())


def roll_back(name: str, alias: str, run_id: str) -> tuple[Registered, Registered]:
    """Give the alias back to the version that carried it before; once more goes back further.

    Returns:
        The version that carries the alias now, and the one that lost it.

    Raises:
        UserError: there is nothing to go back to, or the earlier checkpoint is damaged.
    """
    registry = tracking.client()
    lost, restored = with_alias(name, alias), with_alias(name, previous(alias))
    if lost is None or restored is None:
        missing = alias if lost is None else previous(alias)
        raise UserError(f"{name} cannot be rolled back: no version has the alias {missing}; promote one first")
    verify_checkpoint(restored)
    registry.set_registered_model_alias(name, alias, restored.version)
    registry.set_model_version_tag(name, lost.version, "edgequant.promotion", "rolled back")
    registry.set_model_version_tag(name, lost.version, "edgequant.rolled_back_by", run_id)
    before = restored.tags.get(REPLACED_TAG)
    if before is None:
        registry.delete_registered_model_alias(name, previous(alias))
    else:
        registry.set_registered_model_alias(name, previous(alias), before)
    return get_version(name, restored.version), lost
