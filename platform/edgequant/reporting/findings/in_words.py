"""What a comparison comes to, in plain sentences: what is delivered, what it gains and loses, and what is undecided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from edgequant.evaluation.harm import Loss
from edgequant.evaluation.statistics.verdicts import (
    AT_CHANCE,
    AT_FLOOR,
    BETTER,
    SAME,
    UNDECIDED,
    UNKNOWN,
    WORSE,
    difference_of_intervals,
    side,
)
from edgequant.reporting.charts.marks import row_labels
from edgequant.reporting.columns import HIGH, LOW, Row, columns, is_finite, metric, significant
from edgequant.reporting.comparison import Comparison, Pair
from edgequant.reporting.findings.best import REDUCTION, SIZE, best_quantized

DECODE = "latency/decode_ms_per_token"
MOST_MODELS = 3  # that are told about; the table has all


class Told(NamedTuple):
    """What is told of one model: what is delivered, and sentences about it, each of which stands for itself."""

    lead: str
    sentences: list[str]


def in_words(comparison: Comparison) -> list[Told]:
    """Model by model, the most important first; of more than three models the rest stands in the table alone."""
    rows = comparison.rows
    labels = row_labels(rows)
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    leads = [lead for model in models if (lead := _lead(comparison, model)) is not None]
    if not leads:
        return [Told(_counted(rows, models), ["No quantised model is among them."])]
    told = [_about(comparison, lead, labels[lead]) for lead in leads[:MOST_MODELS]]
    more = len(models) - len(told)
    rest = f"{more} more {'models stand' if more > 1 else 'model stands'} in the table."
    return [*told, Told(rest, [])] if more else told


def loss_in_words(loss: Loss) -> str:
    """`perplexity (domain) on 22 documents, 4.4 % lower (2.7 to 6.2)`; where it is undecided, the interval with its
    signs."""
    name = metric(loss.metric).heading + (f" on {loss.counted}" if loss.counted else "")
    if loss.outcome == UNDECIDED:
        return f"{name}, {change(loss)}"
    interval = ""
    if loss.low is not None and loss.high is not None:
        ends = sorted((abs(loss.low), abs(loss.high)))
        interval = f" ({_amount(ends[0], loss.unit)} to {_amount(ends[1], loss.unit)})"
    return f"{name}, {_amount(abs(loss.loss), loss.unit)} {loss.unit} {_direction(loss)}{interval}"


def change(loss: Loss) -> str:
    """The interval of the metric's own change, with signs: `−6.2 to −2.7 %`."""
    if loss.low is None or loss.high is None:
        return "no interval"
    ends = sorted(_own_way(loss, end) for end in (loss.low, loss.high))
    return f"{signed(ends[0], loss.unit)} to {signed(ends[1], loss.unit)} {loss.unit}"


def p_value(loss: Loss) -> str:
    """Adjusted for the other metrics of the two models; empty where there is none."""
    if loss.p_holm is None:
        return ""
    return "< 0.001" if loss.p_holm < 0.001 else f"{loss.p_holm:.3f}"


def signed(value: float, unit: str = "") -> str:
    """With its sign, as long as it has one: `−4.4`, `+0.06`, `0.00`."""
    text = _amount(abs(value), unit)
    return text if float(text.replace(",", "")) == 0 else ("−" if value < 0 else "+") + text


def own_change(loss: Loss) -> float:
    """How much the metric changed: above 0 where it rose."""
    return _own_way(loss, loss.loss)


def _own_way(loss: Loss, value: float) -> float:
    return value if loss.unit == "%" else -value  # a task loses points as its score falls


def _amount(value: float, unit: str = "") -> str:
    if unit == "nats":
        return f"{value:.3f}"
    return (
        "0"
        if value == 0
        else f"{value:,.2f}"
        if value < 0.095
        else f"{value:,.1f}"
        if value < 1000
        else f"{value:,.0f}"
    )


def _direction(loss: Loss) -> str:
    changed = own_change(loss)
    return "higher" if changed > 0 else "lower" if changed < 0 else "different"


def _counted(rows: Sequence[Row], models: Sequence[str]) -> str:
    shown = ", ".join(models[:6]) + (f" and {len(models) - 6} more" if len(models) > 6 else "")
    return f"{len(rows)} measurement{'s' if len(rows) != 1 else ''} of {shown}."


def _lead(comparison: Comparison, model: str) -> int | None:
    """The row to tell about: the newest that a run delivered, else the best quantised one."""
    own = [at for at, row in enumerate(comparison.rows) if str(row["model"]) == model]
    delivered = [at for at in own if is_delivered(comparison, at)]
    if delivered:
        return max(delivered, key=lambda at: comparison.owners[at].start_time)
    return best_quantized(comparison.rows, own)[0]


def is_delivered(comparison: Comparison, row: int) -> bool:
    """Whether the workflow that measured it made it its result."""
    return comparison.owners[row].tags.get("edgequant.delivered") == comparison.rows[row]["variant"]


def _about(comparison: Comparison, at: int, label: str) -> Told:
    row, owner = comparison.rows[at], comparison.owners[at]
    what = "was delivered" if is_delivered(comparison, at) else "is the best quantised model"
    harm = owner.tags.get("edgequant.harm")
    said = [f"It is not offered for promotion, because it is harmed: {harm}."] if harm else []
    said += _against(comparison, at)
    said += _speed(comparison, at)
    for other in _qat_rows(comparison):
        if comparison.owners[other].id == owner.id:
            said += _against(comparison, other, who="QAT") if other != at else []
            said += [comparison.recovered[other]] if other in comparison.recovered else []
    return Told(f"{label} {what}{_size(row)}.", said)


def _against(comparison: Comparison, at: int, who: str = "it") -> list[str]:
    """A row beside the baseline and PTQ; the table has the control too."""
    pairs = [pair for pair in comparison.pairs if pair.row == at and pair.reference in ("baseline", "ptq")]
    return [_pair_in_words(pair, who) for pair in pairs]


def _qat_rows(comparison: Comparison) -> list[int]:
    return [at for at, row in enumerate(comparison.rows) if row["variant"] == "qat"]


def _size(row: Row) -> str:
    if not is_finite(row.get(SIZE)):
        return ""
    shown = {column.key: column for column in columns([{SIZE: row[SIZE], REDUCTION: row.get(REDUCTION)}])}
    unit = "MB" if "MB" in shown[SIZE].heading else "GB"
    smaller = f", {shown[REDUCTION].cells[0]} % smaller than fp16" if is_finite(row.get(REDUCTION)) else ""
    return f": {shown[SIZE].cells[0]} {unit}{smaller}"


def _pair_in_words(pair: Pair, who: str) -> str:
    """One sentence of a pair: what is better, what is worse, what is undecided."""
    reference = {"baseline": "the unquantised baseline", "ptq": "PTQ"}[pair.reference]
    if not pair.losses:
        return f"Against {reference}, {who} cannot be judged: {pair.reason}."
    groups: dict[str, list[Loss]] = {}
    for loss in pair.losses:
        groups.setdefault(loss.outcome, []).append(loss)
    kinds = {
        BETTER: "better in",
        WORSE: "worse in",
        UNDECIDED: "undecided, as the data do not show a difference, in",
        UNKNOWN: "measured without an interval in",
    }
    told = [f"{words} {_listed(groups[kind])}" for kind, words in kinds.items() if kind in groups]
    for kind, words in ((SAME, "the same in"), (AT_CHANCE, "at chance in"), (AT_FLOOR, "at the floor in")):
        told += [f"{words} {', '.join(metric(loss.metric).heading for loss in groups[kind])}"] if kind in groups else []
    return f"Against {reference}, {who} is {'; '.join(told)}."


def _listed(found: Sequence[Loss]) -> str:
    return "; in ".join(map(loss_in_words, found))


def _speed(comparison: Comparison, at: int) -> list[str]:
    row = comparison.rows[at]
    plain: Any = next(
        (
            other
            for other in comparison.rows
            if other["variant"] == "baseline" and other["model"] == row["model"] and is_finite(other.get(DECODE))
        ),
        None,
    )
    if plain is None or not is_finite(row.get(DECODE)) or plain is row:
        return []
    beside = f"{significant(float(row[DECODE]), 3)} ms/token, the baseline {significant(float(plain[DECODE]), 3)}"
    ends = [
        float(end)
        for each in (row, plain)
        for end in (each.get(DECODE + LOW), each.get(DECODE + HIGH))
        if is_finite(end)
    ]
    if len(ends) < 4:
        return [f"It decodes at {beside}, without intervals."]
    own, other = (float(row[DECODE]), ends[0], ends[1]), (float(plain[DECODE]), ends[2], ends[3])
    told = {"below": "faster", "above": "slower"}.get(
        side(*difference_of_intervals(other, own)), "undecided which is faster"
    )
    return [f"It decodes at {beside}: {told}."]
