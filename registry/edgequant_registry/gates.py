"""Gates applied to metrics: a verdict each, with the value, the bound and the reason in words.

A verdict blocks a promotion, or it does not; only one that was measured, compared and kept its bound has passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgequant.evaluation.evidence import floor_of, is_evidence, lacks_interval
from edgequant_registry.asked import NOTHING_ASKED, Asked
from edgequant_registry.policy import Gate

if TYPE_CHECKING:
    from edgequant.evaluation.pairing import PairedDifference, Pairing

Metrics = Mapping[str, float]
UNSHOWN = -math.inf


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a loss is measured from. `metrics` None: there is no such model; `name` says which one it is, or why not.

    `pairs` compares the version with it item by item; None where no items are known.
    """

    name: str
    metrics: Metrics | None
    pairs: Pairing | None = None


Outcome = Literal["passed", "failed", "warned", "says nothing", "not asked for"]
WORDS: Mapping[Outcome, str] = {"failed": "FAILED", "warned": "WARNING"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A gate's answer. `limit` is the bound as a value of the metric; None where no value could be compared.

    Attributes:
        outcome: `warned`: broken, where the gate only warns. `says nothing`: kept, but a reference that scores what a
            model scores that knows nothing leaves no room for a loss. `not asked for`: the metric is missing, the gate
            is optional, and the run was not asked to measure it.
    """

    gate: Gate
    outcome: Outcome
    value: float | None
    limit: float | None
    reason: str

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def blocks(self) -> bool:
        """Whether it refuses the version."""
        return self.outcome == "failed"

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


class Estimate(NamedTuple):
    """A value and, where it is a sample statistic, its confidence interval."""

    value: float
    low: float | None
    high: float | None


def allowed(verdicts: Sequence[Verdict]) -> bool:
    """Whether a version may be promoted: no gate blocks it, and one at least could judge it."""
    return not any(verdict.blocks for verdict in verdicts) and any(verdict.passed for verdict in verdicts)


def judge(
    gates: Sequence[Gate],
    candidate: Metrics,
    references: Mapping[str, Reference],
    asked: Asked = NOTHING_ASKED,
) -> list[Verdict]:
    """Apply every gate.

    Args:
        candidate: metrics of the version, bounds included.
        references: `baseline` and `champion`.
        asked: what its run was asked to measure.
    """
    return [judge_gate(gate, candidate, references.get(gate.against or ""), asked) for gate in gates]


def judge_gate(gate: Gate, candidate: Metrics, reference: Reference | None, asked: Asked = NOTHING_ASKED) -> Verdict:
    """Apply one gate.

    A missing metric fails, unless the gate is optional and the run was not asked for it; a missing champion passes. A
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
    value = _estimate(candidate, gate.metric)
    if reference is None:
        return _absolute(gate, value)
    if reference.metrics is None:
        return _no_reference(gate, value, reference, asked)
    if gate.metric not in reference.metrics:
        return _missing(gate, f"{reference.name} has no such metric", asked, value.value)
    if reference.pairs is not None and (why := reference.pairs.why_not(gate.metric)):
        return _incomparable(gate, value, f"not comparable with {reference.name}: {why}")
    paired = None if reference.pairs is None else reference.pairs.difference(gate.metric)
    verdict = _relative(gate, value, _estimate(reference.metrics, gate.metric), reference.name, paired)
    nothing = _says_nothing(verdict, reference.metrics)
    if not nothing:
        return verdict
    said = f"{verdict.reason}; {reference.name}: {nothing}"
    return replace(verdict, outcome="says nothing" if verdict.passed else verdict.outcome, reason=said)


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


def _estimate(metrics: Metrics, name: str) -> Estimate:
    """With the interval, if it is one: of no width it tells of a single item or of equal ones."""
    low, high = (metrics.get(f"{name}_ci_{end}") for end in ("low", "high"))
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        return Estimate(metrics[name], None, None)
    return Estimate(metrics[name], low, high)


def _missing(gate: Gate, reason: str, asked: Asked, value: float | None = None) -> Verdict:
    """Where it is the reference that lacks it, the version's run had been asked to measure both."""
    wanted = asked.why(gate.metric)
    if wanted:
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
        said = f"nothing to compare: {reference.name}"
        return Verdict(gate=gate, outcome="passed", value=value.value, limit=None, reason=said)
    return _missing(gate, reference.name, asked, value.value)


def _outcome(gate: Gate, margin: float) -> Outcome:
    return "passed" if margin >= 0 else "warned" if gate.severity == "warn" else "failed"


def _absolute(gate: Gate, value: Estimate) -> Verdict:
    kind, bound = gate.bound
    sign = 1.0 if kind == "min" else -1.0
    low, high = _ends(value, sign)
    margin, how = _decide(gate, sign * (value.value - bound), _plus(low, -sign * bound), _plus(high, -sign * bound))
    word = "at least" if kind == "min" else "at most"
    said = "not shown to be " if margin == UNSHOWN else "" if margin >= 0 else "not "
    reason = f"{value.value:.4g} is {said}{word} {bound:g}{how}"
    return Verdict(gate=gate, outcome=_outcome(gate, margin), value=value.value, limit=bound, reason=reason)


def _ends(value: Estimate, sign: float) -> tuple[float | None, float | None]:
    """The interval with higher as better."""
    if value.low is None or value.high is None:
        return None, None
    return (value.low, value.high) if sign > 0 else (-value.high, -value.low)


def _relative(
    gate: Gate, value: Estimate, reference: Estimate, name: str, paired: PairedDifference | None = None
) -> Verdict:
    kind, bound = gate.bound
    sign = 1.0 if gate.higher_is_better else -1.0
    before = reference.value if paired is None else paired.reference
    allowed = bound if kind == "max_loss" else bound / 100 * abs(before)
    if paired is None:
        difference = sign * (value.value - before)
        low, high = _difference_interval(value, reference, sign)
    else:
        difference = sign * paired.difference
        low, high = _ends(Estimate(paired.difference, paired.low, paired.high), sign)
    margin, how = _decide(gate, difference + allowed, _plus(low, allowed), _plus(high, allowed))
    loss = f"{abs(difference):.4g} {'worse' if difference < 0 else 'better'} than {name} ({before:.4g})"
    said = "not shown to be within" if margin == UNSHOWN else "within" if margin >= 0 else "beyond"
    reason = f"{loss}, {said} {allowed:.4g}{how}" + (f"; {paired.words}" if paired else "")
    limit = before - sign * allowed
    return Verdict(gate=gate, outcome=_outcome(gate, margin), value=value.value, limit=limit, reason=reason)


def _plus(end: float | None, allowed: float) -> float | None:
    return None if end is None else end + allowed


def _difference_interval(value: Estimate, reference: Estimate, sign: float) -> tuple[float | None, float | None]:
    """95 % interval of value - reference, higher as better, from the two intervals (Zou and Donner 2008, MOVER).

    It takes the two as independent. Models measured on the same items are not, so it is wider than a paired interval:
    it never claims more than the data show. Two equal scores on 20 questions leave a wide one.
    """
    (a_low, a_high), (b_low, b_high) = _ends(value, sign), _ends(reference, sign)
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return None, None
    a, b = sign * value.value, sign * reference.value
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def _decide(gate: Gate, measured: float, low: float | None, high: float | None) -> tuple[float, str]:
    """The margin that decides (0 or more passes), of the value or of an end of its interval; how it was chosen."""
    if gate.test == "values":
        return measured, ""
    if low is None or high is None:
        if gate.test == "not_worse" and lacks_interval(gate.metric, {}):
            return UNSHOWN, ": an interval is missing, as of a single item, and this gate wants it shown"
        return measured, " (no intervals: the measured values decide)"
    if gate.test == "not_worse":
        return low, " at 95 %, by the worse end of the interval"
    return high, " at 95 %, by the better end of the interval"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
