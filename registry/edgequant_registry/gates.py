"""Gates applied to metrics: a verdict each, with the value, the bound and the reason in words.

A verdict blocks a promotion, or it does not; only one that was measured, compared and kept its bound has passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgequant.evaluation.evidence import floor_of, is_evidence
from edgequant.evaluation.statistics.verdicts import holm
from edgequant_registry.amounts import amount, difference
from edgequant_registry.asked import NOTHING_ASKED, Asked
from edgequant_registry.decision import UNSHOWN, Estimate, decide, difference_interval, ends, estimate, plus
from edgequant_registry.policy import Gate

if TYPE_CHECKING:
    from edgequant.evaluation.pairing import PairedDifference, Pairing

Metrics = Mapping[str, float]
ALPHA = 0.05
OF_BASELINE = "against_baseline/"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a loss is measured from. `metrics` None: there is no such model; `name` says which one it is, or why not.

    `pairs` compares the version with it item by item; None where no items are known.
    """

    name: str
    metrics: Metrics | None
    pairs: Pairing | None = None


Outcome = Literal["passed", "failed", "warned", "says nothing", "nothing to compare", "not asked for"]
WORDS: Mapping[Outcome, str] = {"failed": "FAILED", "warned": "WARNING"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A gate's answer. `limit` is the bound as a value of the metric; None where no value could be compared.

    Attributes:
        outcome: `warned`: broken, where the gate only warns. `says nothing`: kept, but a reference that scores what a
            model scores that knows nothing leaves no room for a loss. `nothing to compare`: there is no other champion.
            `not asked for`: the metric is missing, the gate is optional, and the run was not asked to measure it.
        p: of a gate with `test: worse`, two-sided p-value of "the difference is the accepted loss", where items tell.
    """

    gate: Gate
    outcome: Outcome
    value: float | None
    limit: float | None
    reason: str
    p: float | None = None

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def blocks(self) -> bool:
        """Whether it refuses the version."""
        return self.outcome == "failed"

    @property
    def is_broken(self) -> bool:
        """Whether it was not kept, whether or not that refuses."""
        return self.outcome in WORDS

    @property
    def word(self) -> str:
        """For people."""
        return WORDS.get(self.outcome, self.outcome)

    @property
    def said(self) -> str:
        """In a sentence."""
        return f"{self.gate.metric} {self.reason}"

    def to_row(self) -> dict[str, Any]:
        """For tables and JSON."""
        return self.to_short_row() | {"reason": self.said}

    def to_short_row(self) -> dict[str, Any]:
        """Without the reason."""
        kind, bound = self.gate.bound
        against = f" of {self.gate.against}" if self.gate.against else ""
        return {
            "verdict": self.word,
            "metric": self.gate.metric,
            "value": _rounded(self.value),
            "gate": f"{kind} {bound:g}{against}",
            "limit": _rounded(self.limit),
        }


def allowed(verdicts: Sequence[Verdict]) -> bool:
    """Whether a version may be promoted: no gate blocks it, and one at least passed it, or will judge the next one."""
    judging = ("passed", "nothing to compare")
    return not any(verdict.blocks for verdict in verdicts) and any(verdict.outcome in judging for verdict in verdicts)


def judge(
    gates: Sequence[Gate],
    candidate: Metrics,
    references: Mapping[str, Reference],
    asked: Asked = NOTHING_ASKED,
) -> list[Verdict]:
    """Apply every gate; those with `test: worse` are one family for Holm's correction.

    Args:
        candidate: metrics of the version, bounds included.
        references: `baseline` and `champion`.
        asked: what its run was asked to measure.
    """
    return _corrected([judge_gate(gate, candidate, references.get(gate.against or ""), asked) for gate in gates])


def _corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Of many breaches that were looked for, those that are still shown."""
    tested = [at for at, verdict in enumerate(verdicts) if verdict.p is not None]
    adjusted = dict(zip(tested, holm([verdicts[at].p or 0.0 for at in tested]), strict=True))
    return [_still_shown(verdict, adjusted.get(at), len(tested)) for at, verdict in enumerate(verdicts)]


def _still_shown(verdict: Verdict, p: float | None, tested: int) -> Verdict:
    if p is None or p < ALPHA or not verdict.is_broken:
        return verdict
    said = f"{verdict.reason}; undecided, p = {p:.2g} by Holm's correction for {tested} such gates"
    return replace(verdict, outcome="passed", reason=said)


def judge_gate(gate: Gate, candidate: Metrics, reference: Reference | None, asked: Asked = NOTHING_ASKED) -> Verdict:
    """Apply one gate.

    A missing metric fails, unless the gate is optional and the run was not asked for it; a missing champion does not. A
    value that measures nothing (NaN, infinite, no time at all) fails always, on either side.
    """
    compared = {"the version": candidate}
    if reference is not None and reference.metrics is not None:
        compared[reference.name] = reference.metrics
    for whose, metrics in compared.items():
        if gate.metric in metrics and not is_evidence(gate.metric, metrics[gate.metric]):
            said = f"of {whose} is {metrics[gate.metric]:g}, which measures nothing; measure it again"
            return Verdict(gate=gate, outcome="failed", value=None, limit=None, reason=said)
    if gate.metric not in candidate:
        return _missing(gate, "the version has no such metric", asked)
    value = estimate(candidate, gate.metric)
    if reference is None:
        return _absolute(gate, value)
    if reference.metrics is None:
        return _no_reference(gate, value, reference, asked)
    if gate.metric not in reference.metrics:
        return _missing(gate, f"{reference.name} has no such metric", asked, value.value)
    if reference.pairs is not None and (why := reference.pairs.why_not(gate.metric)):
        return _incomparable(gate, value, f"not comparable with {reference.name}: {why}")
    paired = None if reference.pairs is None else reference.pairs.difference(gate.metric)
    if gate.instead_of and (told := _decided_by(gate.instead_of, reference)):
        return Verdict(gate=gate, outcome="says nothing", value=value.value, limit=None, reason=told)
    verdict = _relative(gate, value, estimate(reference.metrics, gate.metric), reference.name, paired)
    if paired is not None and paired.chance and gate.test != "not_worse":
        said = f"{verdict.reason}; neither is told from a model that knows nothing ({paired.chance}): it says nothing"
        return replace(verdict, outcome="says nothing", reason=said, p=None)
    nothing = _says_nothing(verdict, reference.metrics)
    if not nothing:
        return verdict
    said = f"{verdict.reason}; {reference.name}: {nothing}"
    return replace(verdict, outcome="says nothing" if verdict.passed else verdict.outcome, reason=said)


def _decided_by(metric: str, reference: Reference) -> str:
    """Why another gate decides: that on the right answers, unless these are at chance."""
    paired = None if reference.pairs is None else reference.pairs.difference(metric)
    if paired is not None and paired.chance:
        return ""
    return f"stands in for {metric} where that is at chance, which it is not, or was not compared"


def _says_nothing(verdict: Verdict, reference: Metrics) -> str:
    """Why a loss could not show: the reference is not told from a model that knows nothing, or such a model keeps the
    bound too."""
    from edgequant.reporting.columns import metric

    gate, floor = verdict.gate, metric(verdict.gate.metric).floor
    if words := floor_of(gate.metric, reference):
        return f"{words}, where a loss hardly shows, so that this gate says nothing"
    least = reference.get(floor) if isinstance(floor, str) else floor
    if least is None or verdict.limit is None or not gate.higher_is_better or verdict.limit > least:
        return ""
    return f"a model that knows nothing scores {least:.4g} and keeps this bound too, so that this gate says nothing"


def _missing(gate: Gate, reason: str, asked: Asked, value: float | None = None) -> Verdict:
    """Where it is the reference that lacks it, the version's run had been asked to measure both."""
    if asked.uncompared and gate.metric.startswith(OF_BASELINE):
        return _uncompared(gate, asked, value)
    wanted = asked.why(gate.metric)
    if asked.unknown:
        said = f"{reason}, and {asked.unknown} whether its run was asked for it; measure it again"
    elif wanted:
        said = f"{reason}, and its run was asked for it ({wanted}); measure it again"
    elif gate.optional:
        said = f"not compared: {reason}, and nothing asked for it (optional)"
    else:
        said = f"{reason}; measure it, or say `optional: true`"
    outcome: Outcome = "not asked for" if gate.optional and not wanted else "failed"
    return Verdict(gate=gate, outcome=outcome, value=value, limit=None, reason=said)


def _incomparable(gate: Gate, value: Estimate, reason: str) -> Verdict:
    """What was measured in two ways is not compared, and a gate that compares nothing has not been kept."""
    said = f"{reason}; measure both alike, or leave this gate out"
    return Verdict(gate=gate, outcome=_outcome(gate, UNSHOWN), value=value.value, limit=None, reason=said)


def _no_reference(gate: Gate, value: Estimate, reference: Reference, asked: Asked) -> Verdict:
    if gate.against == "champion":
        said = f"{amount(gate.metric, value.value)}; {reference.name}"
        return Verdict(gate=gate, outcome="nothing to compare", value=value.value, limit=None, reason=said)
    return (
        _uncompared(gate, asked, value.value)
        if asked.uncompared
        else _missing(gate, reference.name, asked, value.value)
    )


def _uncompared(gate: Gate, asked: Asked, value: float | None) -> Verdict:
    """A model that was never held against the one that it was made from has kept nothing that asks for it."""
    return Verdict(gate=gate, outcome=_outcome(gate, UNSHOWN), value=value, limit=None, reason=asked.uncompared)


def _outcome(gate: Gate, margin: float) -> Outcome:
    return "passed" if margin >= 0 else "warned" if gate.severity == "warn" else "failed"


def _absolute(gate: Gate, value: Estimate) -> Verdict:
    kind, bound = gate.bound
    sign = 1.0 if kind == "min" else -1.0
    low, high = ends(value, sign)
    margin, how = decide(gate, sign * (value.value - bound), plus(low, -sign * bound), plus(high, -sign * bound))
    word = "at least" if kind == "min" else "at most"
    said = "not shown to be " if margin == UNSHOWN else "" if margin >= 0 else "not "
    reason = f"{amount(gate.metric, value.value)} is {said}{word} {amount(gate.metric, bound)}{how}"
    return Verdict(gate=gate, outcome=_outcome(gate, margin), value=value.value, limit=bound, reason=reason)


def _relative(
    gate: Gate, value: Estimate, reference: Estimate, name: str, paired: PairedDifference | None = None
) -> Verdict:
    kind, bound = gate.bound
    sign = 1.0 if gate.higher_is_better else -1.0
    before = reference.value if paired is None else paired.reference
    allowed = bound if kind == "max_loss" else bound / 100 * abs(before)
    if paired is None:
        gain = sign * (value.value - before)
        low, high = difference_interval(value, reference, sign)
    else:
        gain = sign * paired.difference
        low, high = ends(Estimate(paired.difference, paired.low, paired.high), sign)
    margin, how = decide(gate, gain + allowed, plus(low, allowed), plus(high, allowed))
    said = "not shown to be within" if margin == UNSHOWN else "within" if margin >= 0 else "beyond"
    reason = f"{_how_much(gate, gain)} {name} ({amount(gate.metric, before)}), {said} "
    reason += f"the {difference(gate.metric, allowed)} accepted{how}" + (f"; {paired.words}" if paired else "")
    limit = before - sign * allowed
    p = None if paired is None or gate.test != "worse" else paired.p_value(-sign * allowed)
    return Verdict(gate=gate, outcome=_outcome(gate, margin), value=value.value, limit=limit, reason=reason, p=p)


def _how_much(gate: Gate, gain: float) -> str:
    return f"{difference(gate.metric, abs(gain))} {'worse' if gain < 0 else 'better'} than" if gain else "as good as"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
