"""`promote`: give a registered version the alias `champion` if it passes the policy's gates, or say why not.

mlflow run . -e promote
edgequant promote --model tiny --policy my-policy.yaml --dry_run true
edgequant promote --model tiny --alias challenger       # beside the champion, to be compared with it
edgequant promote --model tiny --rollback true
edgequant promote --model tiny --history true
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from edgequant.errors import UserError
from edgequant.folders import MANIFEST
from edgequant.workflows.settings import WorkflowResult

if TYPE_CHECKING:
    from edgequant.tracking.runs import Run
    from edgequant_registry.evidence.remeasure import Remeasuring
    from edgequant_registry.policy import Policy
    from edgequant_registry.promotion import Judgement, Rollback
    from edgequant_registry.versions import Registered


class PromotionRefusedError(SystemExit):
    """A gate failed: the process ends with exit code 1, after the table and with a FINISHED run."""

    def __init__(self) -> None:
        super().__init__(1)


class PromotionOvertakenError(SystemExit):
    """Another promotion or rollback was faster: the process ends with exit code 3, with a FINISHED run; no alias that
    the other one moved was touched."""

    def __init__(self) -> None:
        super().__init__(3)


def promote(
    *,
    model: str | None = None,
    version: int | None = None,
    policy: str = "default",
    alias: str = "champion",
    dry_run: bool = False,
    rollback: bool = False,
    steps: int = 1,
    history: bool = False,
    remeasure: bool = True,
    data_dir: str | None = None,
    experiment: str = "edgequant",
) -> WorkflowResult:
    """Promote a registered version through the gates of a policy, roll promotions back, or tell who was champion.

    Args:
        model: registered name or short name; default: the newest registered version of any edgequant-* model.
        version: version of the model; default: the newest.
        policy: a bundled policy (default) or a YAML file.
        alias: alias that the version gets; the version before keeps previous_<alias>. challenger: compared with the
            champion, and stands beside it.
        dry_run: show the verdicts and change nothing.
        rollback: give the alias back to the version that had it before.
        steps: how many versions a rollback goes back.
        history: show who had which alias, when, why and by which policy.
        remeasure: load the checkpoint in a fresh process and measure a sample of its figures again before the alias
            moves; false is written on the version.
        data_dir: folder with WikiText-2, BoolQ and SQuAD to measure on again (default: the one that the version was
            measured from, else $EDGEQUANT_DATA).
        experiment: MLflow experiment, unless `mlflow run` names one.

    Raises:
        UserError: no such version, an unreadable policy, a damaged checkpoint.
        PromotionRefusedError: a gate failed; exit code 1.
        PromotionOvertakenError: somebody else moved the alias meanwhile; exit code 3.
    """
    config = dict(locals())
    from edgequant_registry.policy import read_policy

    gates = read_policy(policy)
    _check(alias, version, dry_run, rollback, steps, history)
    _check_data(data_dir, is_read=remeasure and not (rollback or history))

    from edgequant import tracking
    from edgequant_registry import promotion, results, versions
    from edgequant_registry.evidence.remeasure import Remeasuring

    candidate = versions.find_version(model, None if version is None else str(version))
    plan = promotion.plan_rollback(candidate.name, alias, steps) if rollback else None
    if not (history or rollback):
        _check_candidate(candidate, alias, is_named=version is not None)
        if not dry_run:
            versions.check_has_evidence(candidate)
    if not (dry_run or history):
        tracking.check_may_change(candidate.name)
    with tracking.workflow_run("promote", config, experiment=experiment) as run:
        tracking.set_tags(results.tags_of(candidate))
        tracking.log_params(results.parameters_of(candidate))
        stopped: SystemExit | None = None
        if history:
            result = results.tell_history(candidate.name, run)
        elif plan is not None:
            result, stopped = _roll_back(plan, run)
        else:
            again = Remeasuring(wanted=remeasure, data_dir=data_dir)
            result, stopped = _promote(candidate, alias, gates, dry_run, again, run)
    if stopped is not None:
        raise stopped
    return result


def _check(alias: str, version: int | None, dry_run: bool, rollback: bool, steps: int, history: bool) -> None:
    if not re.fullmatch(r"[A-Za-z][\w-]*", alias) or alias == "latest" or re.fullmatch(r"v\d+", alias):
        raise UserError(f"alias must be letters, digits, _ and -, and neither latest nor v1, v2, ..., got {alias!r}")
    if alias.startswith("previous_"):
        raise UserError(f"alias must not begin with previous_, which promote keeps itself, got {alias!r}")
    if version is not None and version < 1:
        raise UserError(f"version must be at least 1, got {version}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}; a rollback goes back")
    if steps > 1 and not rollback:
        raise UserError(f"steps goes with rollback true, got steps {steps} without it")
    if rollback and (dry_run or version is not None):
        raise UserError(
            "rollback goes to a version before and takes neither version nor dry_run; to go elsewhere, promote that"
        )
    if rollback and alias == "challenger":
        raise UserError("rollback takes no alias challenger, which has no past; give another version that alias")
    if history and (rollback or dry_run or version is not None):
        raise UserError("history only shows, and takes neither rollback nor dry_run nor version")


def _check_data(data_dir: str | None, *, is_read: bool) -> None:
    from edgequant.corpora.benchmarks import data_folder

    if data_dir is None:
        return
    if not is_read:
        raise UserError(
            f"data_dir is read to measure again, got {data_dir!r} with remeasure false, rollback or history, which "
            "measure nothing; leave it out"
        )
    data_folder(data_dir)


def _check_candidate(candidate: Registered, alias: str, *, is_named: bool) -> None:
    """A promotion that runs every night must not undo a rollback; and a champion is nobody's challenger."""
    from edgequant.workflows.steps.register import promote_command
    from edgequant_registry import versions
    from edgequant_registry.aliases.journal import rolled_back

    if not is_named and candidate.version in rolled_back(candidate.name, alias):
        raise UserError(
            f"{candidate.label} is the newest and was rolled back; to promote it again: "
            f"`{promote_command(candidate.uri)}`"
        )
    if alias == "challenger":
        champion = versions.with_alias(candidate.name, "champion")
        if champion is not None and champion.version == candidate.version:
            raise UserError(f"{candidate.label} is the champion; a challenger is another version, see --version")


def _promote(
    candidate: Registered, alias: str, policy: Policy, dry_run: bool, again: Remeasuring, run: Run
) -> tuple[WorkflowResult, SystemExit | None]:
    from edgequant import tracking
    from edgequant_registry import gates, promotion, results

    tracking.name_run(f"promote {candidate.name} v{candidate.version}")
    judged = _judged(candidate, alias, policy, again, run.id)
    is_allowed = gates.allowed(judged.verdicts)
    if dry_run:
        found = promotion.Outcomes("promoted" if is_allowed else "refused")
    else:
        found = promotion.promote_version(judged) if is_allowed else promotion.refuse(judged)
    rows = results.tell_promotion(judged, found, dry_run, run)
    stops = {"refused": PromotionRefusedError(), "overtaken": PromotionOvertakenError()}
    return WorkflowResult(run.id, candidate.metrics, candidate.uri, rows), stops.get(found.outcome)


def _judged(candidate: Registered, alias: str, policy: Policy, again: Remeasuring, run_id: str) -> Judgement:
    """Check the files first: metrics of a checkpoint that is not what was measured mean nothing."""
    from edgequant import tracking
    from edgequant_registry import gates, promotion, versions
    from edgequant_registry.asked import asked_of
    from edgequant_registry.evidence.remeasure import with_findings

    champion = versions.with_alias(candidate.name, promotion.compared_with(alias))
    folder = promotion.verify_checkpoint(candidate)
    asked = asked_of(candidate.evidence)
    verdicts = gates.judge(policy.gates, candidate.metrics, versions.references(candidate, champion), asked)
    found = again.of(folder, candidate.evidence, verdicts)
    verdicts = with_findings(verdicts, found)
    tracking.log_metrics(candidate.metrics)
    tracking.log_text(policy.to_yaml(), "policy.yaml")
    tracking.log_table([verdict.to_row() for verdict in verdicts], "gates.json")
    tracking.log_table(found.rows, "remeasured.json")
    listed = json.loads((folder / MANIFEST).read_text())["sha256"]
    tracking.log_text(f"{len(listed)} files are those that were filed\n", "integrity.txt")
    return promotion.Judgement(
        candidate=candidate, alias=alias, champion=None if champion is None else champion.version, policy=policy,
        verdicts=verdicts, remeasured=found.words, run_id=run_id,
    )  # fmt: skip


def _roll_back(plan: Rollback, run: Run) -> tuple[WorkflowResult, SystemExit | None]:
    from edgequant import tracking
    from edgequant_registry import promotion, results, versions

    tracking.name_run(f"roll back {plan.name}")
    restored = versions.get_version(plan.name, str(plan.restored.version))
    promotion.verify_restored(restored, plan)
    said = promotion.roll_back(plan, run.id)
    rows = results.tell_rollback(plan, said, run)
    stopped = PromotionOvertakenError() if said else None
    return WorkflowResult(run.id, restored.metrics, restored.uri, rows), stopped
