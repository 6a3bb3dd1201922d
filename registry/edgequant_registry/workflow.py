"""`promote`: give a registered version the alias `champion` if it passes the policy's gates, or say why not.

mlflow run . -e promote
edgequant promote --model tiny --policy my-policy.yaml --dry_run true
edgequant promote --model tiny --rollback true
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError
from edgequant.workflows.settings import WorkflowResult

if TYPE_CHECKING:
    from edgequant.tracking.runs import Run
    from edgequant_registry.gates import Verdict
    from edgequant_registry.policy import Policy
    from edgequant_registry.versions import Registered


class PromotionRefusedError(SystemExit):
    """A gate failed: the process ends with exit code 1, after the table and with a FINISHED run."""

    def __init__(self) -> None:
        super().__init__(1)


def promote(
    *,
    model: str | None = None,
    version: int | None = None,
    policy: str = "default",
    alias: str = "champion",
    dry_run: bool = False,
    rollback: bool = False,
    experiment: str = "edgequant",
) -> WorkflowResult:
    """Promote a registered version through the gates of a policy, or roll the last promotion back.

    Args:
        model: registered name or short name; default: the newest registered version of any edgequant-* model.
        version: version of the model; default: the newest.
        policy: a bundled policy (default) or a YAML file.
        alias: alias that the version gets; the version before keeps previous_<alias>.
        dry_run: show the verdicts and change nothing.
        rollback: give the alias back to the version that had it before.
        experiment: MLflow experiment, unless `mlflow run` names one.

    Raises:
        UserError: no such version, an unreadable policy, a damaged checkpoint.
        PromotionRefusedError: a gate failed; exit code 1.
    """
    config = dict(locals())
    from edgequant_registry.policy import read_policy

    gates = read_policy(policy)
    _check(alias, version, dry_run, rollback)

    from edgequant import tracking
    from edgequant_registry import promotion, versions

    candidate = versions.find_version(model, None if version is None else str(version))
    if version is None and not rollback:
        _check_not_rolled_back(candidate)
    if not dry_run:
        tracking.check_may_change(candidate.name)
    with tracking.workflow_run("promote", config, experiment=experiment) as run:
        tracking.name_run(f"{'roll back' if rollback else 'promote'} {candidate.name} v{candidate.version}")
        tracking.set_tags(_tags(candidate))
        if rollback:
            restored, lost = promotion.roll_back(candidate.name, alias, run.id)
            rows = _report_rollback(restored, lost, alias, run)
            return WorkflowResult(run.id, restored.metrics, restored.uri, rows)
        champion = versions.with_alias(candidate.name, alias)
        verdicts = _judged(candidate, champion, gates)
        passed = all(verdict.passed for verdict in verdicts)
        tracking.set_tags({"edgequant.promotion": _outcome(passed, dry_run)})
        if passed and not dry_run:
            promotion.promote_version(candidate, alias, gates, verdicts, run.id)
        elif not dry_run:
            promotion.record(candidate, gates, verdicts, run.id, promoted=False)
        _report(candidate, champion, gates, verdicts, alias, dry_run, run)
    if not passed:
        raise PromotionRefusedError
    return WorkflowResult(run.id, candidate.metrics, candidate.uri, [verdict.to_row() for verdict in verdicts])


def _check(alias: str, version: int | None, dry_run: bool, rollback: bool) -> None:
    if not re.fullmatch(r"[A-Za-z][\w-]*", alias) or alias == "latest" or re.fullmatch(r"v\d+", alias):
        raise UserError(f"alias must be letters, digits, _ and -, and neither latest nor v1, v2, ..., got {alias!r}")
    if version is not None and version < 1:
        raise UserError(f"version must be at least 1, got {version}")
    if rollback and (dry_run or version is not None):
        raise UserError(
            "rollback goes to the version before and takes neither version nor dry_run; to go elsewhere, promote that"
        )


def _check_not_rolled_back(candidate: Registered) -> None:
    """A promotion that runs every night must not undo a rollback."""
    if candidate.tags.get("edgequant.promotion") == "rolled back":
        again = f"edgequant promote --model {candidate.name} --version {candidate.version}"
        raise UserError(f"{candidate.label} is the newest and was rolled back; to promote it again: {again}")


def _judged(candidate: Registered, champion: Registered | None, policy: Policy) -> list[Verdict]:
    """Check the files first: metrics of a checkpoint that is not what was measured mean nothing."""
    from edgequant import tracking
    from edgequant_registry import gates, promotion, versions

    found = promotion.verify_checkpoint(candidate)
    verdicts = gates.judge(policy.gates, candidate.metrics, versions.references(candidate, champion))
    tracking.log_metrics({key: value for key, value in candidate.metrics.items()})
    tracking.log_text(policy.to_yaml(), "policy.yaml")
    tracking.log_table([verdict.to_row() for verdict in verdicts], "gates.json")
    tracking.log_text(found + "\n", "integrity.txt")
    return verdicts


def _tags(candidate: Registered) -> dict[str, str]:
    kept = {key: candidate.tags[key] for key in ("edgequant.model", "edgequant.scheme") if key in candidate.tags}
    return kept | {"edgequant.registered": candidate.uri, "edgequant.phase": "promote"}


def _outcome(passed: bool, dry_run: bool) -> str:
    return ("would be " if dry_run else "") + ("promoted" if passed else "refused")


def _report(
    candidate: Registered,
    champion: Registered | None,
    policy: Policy,
    verdicts: Sequence[Verdict],
    alias: str,
    dry_run: bool,
    run: Run,
) -> None:
    from edgequant.workflows.steps.summary import print_summary

    failed = sum(not verdict.passed for verdict in verdicts)
    outcome = _outcome(not failed, dry_run)
    missing = [verdict.gate.metric for verdict in verdicts if verdict.word == "not measured"]
    why = f"{failed} of {len(verdicts)} gates failed" if failed else _passed(len(verdicts), len(missing))
    before = f"; {alias} is version {champion.version}" if champion and (failed or dry_run) else ""
    title = f"promote: {candidate.label} {outcome} to {alias} under policy {policy.name}: {why}{before}"
    shipped = [name for name in missing if name.startswith("deploy/")]
    notes = [f"not measured, and so not judged: {', '.join(dict.fromkeys(shipped))}"] if shipped else []
    rows, following = [verdict.to_row() for verdict in verdicts], _next(candidate, alias, failed, dry_run)
    print_summary(title, rows, run, following, notes=notes)


def _passed(gates: int, missing: int) -> str:
    return f"{gates - missing} gates passed, {missing} not measured" if missing else f"all {gates} gates passed"


def _next(candidate: Registered, alias: str, failed: int, dry_run: bool) -> str:
    if failed:
        return f"edgequant report    # or --policy FILE, if a gate is not what you mean ({candidate.uri})"
    if dry_run:
        return f"edgequant promote --model {candidate.name} --version {candidate.version}"
    return f"mlflow models serve -m models:/{candidate.name}@{alias} --env-manager local"


def _report_rollback(restored: Registered, lost: Registered, alias: str, run: Run) -> list[dict[str, Any]]:
    from edgequant import tracking
    from edgequant.workflows.steps.summary import print_summary

    tracking.set_tags({"edgequant.promotion": "rolled back"})
    rows: list[dict[str, Any]] = [
        {"version": int(restored.version), "now": alias, **restored.metrics},
        {"version": int(lost.version), "now": "rolled back", **lost.metrics},
    ]
    title = f"promote: {restored.name}, {alias} is version {restored.version} again"
    print_summary(title, rows, run, f"mlflow models serve -m models:/{restored.name}@{alias} --env-manager local")
    return rows
