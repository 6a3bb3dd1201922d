"""What `promote` prints and files: verdicts, a rollback, the history."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.workflows.settings import WorkflowResult
from edgequant.workflows.steps.register import promote_command
from edgequant.workflows.steps.summary import print_summary
from edgequant_registry.aliases.claims import claimed
from edgequant_registry.aliases.history import HEADINGS, history_rows
from edgequant_registry.aliases.journal import CHALLENGER, CHAMPION, settle, standing
from edgequant_registry.gates import Outcome, Verdict
from edgequant_registry.promotion import Judgement, Outcomes, Rollback, compared_with
from edgequant_registry.versions import Registered, get_version

if TYPE_CHECKING:
    from edgequant.tracking.runs import Run

COUNTED: dict[Outcome, str] = {
    "passed": "gates passed",
    "warned": "warned",
    "says nothing": "say nothing",
    "nothing to compare": "with nothing to compare",
    "not asked for": "not asked for",
}


CARRIES = tuple(HEADINGS.values())  # how an entry begins by which a version carries the alias


def tags_of(version: Registered) -> dict[str, str]:
    """For the run that looks at a version."""
    kept = {key: version.tags[key] for key in ("edgequant.model", "edgequant.scheme") if key in version.tags}
    return kept | {"edgequant.registered": version.uri, "edgequant.phase": "promote"}


def parameters_of(version: Registered) -> dict[str, str]:
    """By which the table of runs shows what a promotion is about, as it shows what was measured."""
    return {key: told for key in ("model", "scheme") if (told := version.tags.get(f"edgequant.{key}"))}


def tell_promotion(judged: Judgement, found: Outcomes, dry_run: bool, run: Run) -> list[dict[str, Any]]:
    """Print and file the verdicts and what came of them; returns the table's rows."""
    outcome = ("would be " if dry_run else "") + found.outcome
    tracking.set_tags({"edgequant.promotion": outcome})
    stays = found.outcome != "promoted" or dry_run
    before = f"; {compared_with(judged.alias)} is version {judged.champion}" if judged.champion and stays else ""
    before = "" if found.said else before
    title = (
        f"promote: {judged.candidate.label} {outcome} {_towards(found, judged)} under policy {judged.policy.name}: "
        f"{_counts(judged.verdicts)}{before}"
    )
    rows = [verdict.to_row() for verdict in judged.verdicts]
    lead = [found.said] if found.said else []
    following, shown = _next(judged, found, dry_run), _shown(judged.verdicts)
    print_summary(title, rows, run, following, lead=lead, notes=_notes(judged), shown=shown)
    return rows


def _towards(found: Outcomes, judged: Judgement) -> str:
    return {
        "overtaken": f"on the way to {judged.alias}",
        "challenger": f"beside {CHAMPION}",
        "refused": f"as {judged.alias}",
    }.get(found.outcome, f"to {judged.alias}")


def _shown(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """For people: what refuses first; what was not asked for stands in a line below."""
    judged = [verdict for verdict in verdicts if verdict.outcome != "not asked for"]
    judged.sort(key=lambda verdict: ("failed", "warned").index(verdict.outcome) if verdict.is_broken else 2)
    return [{"verdict": each.word, "gate": each.gate.metric, "why": each.reason} for each in judged]


def _counts(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.outcome for verdict in verdicts)
    if counts["failed"]:
        return f"{counts['failed']} of {len(verdicts)} gates failed"
    if not counts["passed"]:
        return "no gate could judge it"
    if counts["passed"] == len(verdicts):
        return f"all {len(verdicts)} gates passed"
    return ", ".join(f"{counts[outcome]} {words}" for outcome, words in COUNTED.items() if counts[outcome])


def _notes(judged: Judgement) -> list[str]:
    """What nobody asked for; whether the figures were measured again."""
    silent = dict.fromkeys(each.gate.metric for each in judged.verdicts if each.outcome == "not asked for")
    notes = [f"not asked for, and so not judged: {', '.join(silent)}"] if silent else []
    return [*notes, f"measured again: {judged.remeasured}"]


def _next(judged: Judgement, found: Outcomes, dry_run: bool) -> str:
    if found.outcome == "refused":
        return f"edgequant report    # or --policy FILE, if a gate is not what you mean ({judged.candidate.uri})"
    if dry_run or found.outcome in ("overtaken", "challenger"):
        return promote_command(judged.candidate.uri)
    return _serve(judged.candidate.name, judged.alias)


def _serve(name: str, alias: str) -> str:
    return f"mlflow models serve -m {shlex.quote(f'models:/{name}@{alias}')} --env-manager local"


def tell_rollback(plan: Rollback, said: str, run: Run) -> list[dict[str, Any]]:
    """Print and file what a rollback came to; returns the table's rows.

    Args:
        said: what happened instead; empty where it was done.
    """
    tracking.set_tags({"edgequant.promotion": "overtaken" if said else "rolled back"})
    versions = {str(plan.restored.version): f"{plan.alias} before" if said else plan.alias}
    if plan.lost is not None:
        versions[plan.lost] = f"{plan.alias} when this began" if said else "rolled back"
    found = [(get_version(plan.name, version), now) for version, now in versions.items()]
    rows: list[dict[str, Any]] = [{"version": int(one.version), "now": now, **_figures(one)} for one, now in found]
    title = f"promote: {plan.name}, {plan.alias} is version {plan.restored.version} again"
    if said:
        title = f"promote: {plan.name} was not rolled back, since {said}"
    notes = [f"no longer there, and so skipped: version {', '.join(plan.skipped)}"] if plan.skipped else []
    print_summary(title, rows, run, _serve(plan.name, plan.alias), notes=notes)
    return rows


def _figures(version: Registered) -> dict[str, float]:
    """None of a version whose evidence is damaged or gone, which may be why it was rolled back."""
    try:
        return version.metrics
    except UserError:
        return {}


def tell_history(name: str, run: Run) -> WorkflowResult:
    """Print and file who had which alias; what a killed promotion left is settled first."""
    tracking.name_run(f"history of {name}")
    found = standing(name, CHAMPION)
    if found.unwritten:
        with claimed(name, "settling what an interrupted promotion left") as claim:
            found = settle(claim, CHAMPION)
    rows = history_rows(found.entries)
    tracking.log_table(rows, "history.json")
    champion, challenger = found.aliases.get(CHAMPION), found.aliases.get(CHALLENGER)
    lead = [f"{CHAMPION}: {_version(champion)}; {CHALLENGER}: {_version(challenger)}"]
    notes = (
        [f"tags that cannot be read, somebody has changed them: {', '.join(found.unreadable)}"]
        if found.unreadable
        else []
    )
    back = f"edgequant promote --model {shlex.quote(name)} --rollback true" if len(found.line(CHAMPION)) > 1 else None
    title, shown = f"promote: history of {name}", [_short(row) for row in rows]
    title += "; times are UTC" if rows else " (nothing was promoted yet)"
    print_summary(title, rows, run, back, lead=lead, notes=[*_reasons(rows), *notes], shown=shown)
    return WorkflowResult(run.id, {}, f"models:/{name}/{champion}" if champion else None, rows)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A line of a terminal: `history.json` has it whole."""
    until = _minute(row["until"]) or "now" * row["how"].startswith(CARRIES)
    kept = {key: row[key] for key in ("alias", "version", "how")}
    return kept | {"since": _minute(row["since"]), "until": until, "run": row["run"][:8]}


def _minute(at: str) -> str:
    """2026-11-26T11:25:53.698Z as 2026-11-26 11:25."""
    return at[:16].replace("T", " ")


def _reasons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Under which policy, and why."""
    policies = [f" ({row['policy']})" if row["policy"] else "" for row in rows]
    told = zip(rows, policies, strict=True)
    return [f"{_minute(row['since'])}  version {row['version']}{policy}: {row['why']}" for row, policy in told]


def _version(version: str | None) -> str:
    return "nobody" if version is None else f"version {version}"
