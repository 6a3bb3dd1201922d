"""What a comparison comes to: which variant is delivered and why, what was harmed, what QAT won back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgequant.evaluation.harm import Loss, losses
from edgequant.workflows.steps.held_out_texts import GUARD, VALIDATION, allowed
from edgequant.workflows.steps.measure import Measured, headline
from edgequant.workflows.steps.text_mix import parse_mix

if TYPE_CHECKING:
    from edgequant.quantization.qat.settings import QatSettings
    from edgequant.workflows.steps.qat_experiment import QatExperiment

PREFIX = "held_out/"
RUN_TAGS = ("edgequant.delivered", "edgequant.verdict", "edgequant.harm")  # of five; the rest is in verdict.json
MOST_DECIMALS = 17  # beyond which float64 has none for losses above 0.1
HARMED = "against_baseline/harmed"
Rows = Mapping[str, Measured]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Attributes:
    delivered: the variant whose checkpoint is the result.
    because: why it is.
    losses: by variant, how much worse than the model as it came it is on each metric.
    harm: what speaks against promoting the result, in words; empty where nothing does.
    recovered: share of PTQ's loss that QAT won back; None where that is not defined.
    recovered_because: why it is not.
    """

    delivered: str
    because: str
    losses: Mapping[str, list[Loss]]
    harm: list[str]
    recovered: float | None
    recovered_because: str

    @property
    def metrics(self) -> dict[str, float]:
        """Of the delivered variant: its losses with their intervals, whether it is harmed, what was won back."""
        found = loss_metrics(self.losses.get(self.delivered, ()), self.harm)
        return found | ({} if self.recovered is None else {"qat/recovered_fraction": self.recovered})

    @property
    def lines(self) -> list[str]:
        """What a reader has to know before the table."""
        found = [f"delivered: {self.delivered}, because {self.because}"]
        found += harm_lines(self.harm)
        if self.recovered_because:
            found.append(f"recovered fraction: {self.recovered_because}")
        return found

    @property
    def tags(self) -> dict[str, str]:
        """For people and for the registry."""
        return {
            "edgequant.delivered": self.delivered,
            "edgequant.delivered_because": self.because,
            **harm_tags(self.harm),
            "edgequant.recovered_fraction": "defined" if self.recovered_because == "" else self.recovered_because,
        }


def loss_metrics(found: Sequence[Loss], harm: Sequence[str]) -> dict[str, float]:
    """What a model lost against its baseline, with intervals, and whether it is harmed."""
    told = {HARMED: float(bool(harm))}
    for loss in found:
        name = f"against_baseline/{loss.metric.replace('/', '_')}_loss"
        ends = {f"{name}_ci_low": loss.low, f"{name}_ci_high": loss.high}
        told |= {name: loss.loss} | {end: bound for end, bound in ends.items() if bound is not None}
    return told


def harm_lines(harm: Sequence[str]) -> list[str]:
    """What speaks against promoting a model, for people."""
    return [f"harmed: {reason}; not offered for promotion" for reason in harm]


def harm_tags(harm: Sequence[str]) -> dict[str, str]:
    """The verdict, for the registry."""
    return {"edgequant.verdict": "harmed" if harm else "not harmed", "edgequant.harm": "; ".join(harm)}


def log(found: Verdict, metrics: Mapping[str, float]) -> None:
    """On the active run the delivered variant's metrics, the verdict in tags and whole in verdict.json, and the losses
    of all variants."""
    from edgequant import tracking

    tracking.log_metrics(metrics)
    told = {name: value for name, value in found.tags.items() if value}
    tracking.set_tags({name: value for name, value in told.items() if name in RUN_TAGS})
    tracking.log_text(json.dumps(told, indent=2) + "\n", "verdict.json")
    table = [{"variant": name, **asdict(loss)} for name, each in found.losses.items() for loss in each]
    if table:
        tracking.log_table(table, "against_baseline.json")


def judge(rows: Rows, experiment: QatExperiment, dataset: str) -> Verdict:
    """Choose the variant to deliver, and say what became of the model as it came.

    Args:
        rows: every variant, measured.
        dataset: the training text.
    """
    delivered, because = choose(rows)
    found = losses_of(rows, experiment.qat)
    harm = [loss.reason for loss in found[delivered] if loss.harmed]
    if delivered != "qat":
        harm += harmed_in_training(rows["qat"], experiment.limits("baseline"), experiment.qat)
    recovered, why = recovered_fraction(rows, dataset)
    return Verdict(
        delivered=delivered, because=because, losses=found, harm=harm, recovered=recovered, recovered_because=why
    )


def losses_of(rows: Rows, settings: QatSettings) -> dict[str, list[Loss]]:
    """Every variant against the model as it came, on the items that both were measured on."""
    baseline, accepted = rows["baseline"].items, (settings.max_perplexity_loss, settings.max_task_loss)
    return {
        name: losses(baseline, row.items, perplexity_margin=accepted[0], task_margin=accepted[1])
        for name, row in rows.items()
        if name != "baseline"
    }


def choose(rows: Rows) -> tuple[str, str]:
    """The variant to deliver and why: of those that predict every held-out text as well as PTQ does, the best one.

    The validation text exactly, the guard within a per cent of perplexity; the lowest mean loss over both is the best.
    """
    ptq = held_out_losses(rows["ptq"])
    candidates = [name for name in ("ptq", "control-ptq", "qat") if name in rows and _fits(rows[name], ptq)]
    best = min(candidates, key=lambda name: _mean(held_out_losses(rows[name])))  # PTQ first, so that a tie is PTQ's
    if best == "ptq":
        return best, f"no state of QAT has a lower loss on held-out text: QAT's best is {_beside(rows['qat'], ptq)}"
    named = "PTQ's" if best == "qat" else "that of PTQ of the model as it came"
    step = f" at {rows['qat'].notes['best_step']}" if best == "qat" else ""
    return best, f"its loss on held-out text is lower than {named}{step}: {_beside(rows[best], ptq)}"


def held_out_losses(row: Measured) -> dict[str, float]:
    """By text, nats per token."""
    return {
        name.removeprefix(PREFIX).removesuffix("_loss"): value
        for name, value in row.metrics.items()
        if name.startswith(PREFIX)
    }


def _fits(row: Measured, ptq: Mapping[str, float]) -> bool:
    found = held_out_losses(row)
    return all(found[name] <= allowed(name, loss) for name, loss in ptq.items())


def _mean(found: Mapping[str, float]) -> float:
    return sum(found.values()) / len(found)


def _beside(row: Measured, ptq: Mapping[str, float]) -> str:
    found = held_out_losses(row)
    told = {name: told_apart(found[name], loss) for name, loss in ptq.items()}
    return ", ".join(
        f"{name} loss {own} (PTQ {'the same' if own == other else other})" for name, (own, other) in told.items()
    )


def told_apart(loss: float, other: float) -> tuple[str, str]:
    """Two losses with three decimals, or as many as it takes to see which is lower; alike only where they are equal."""
    decimals = 3
    while f"{loss:.{decimals}f}" == f"{other:.{decimals}f}" and loss != other and decimals < MOST_DECIMALS:
        decimals += 1
    return f"{loss:.{decimals}f}", f"{other:.{decimals}f}"


def harmed_in_training(row: Measured, baseline: Mapping[str, float], settings: QatSettings) -> list[str]:
    """Whether training did harm where it went on to its end: its last look at held-out text beside the baseline's.

    Args:
        row: QAT's.
        baseline: losses of the model as it came on the rows that training watched.
    """
    looks = json.loads(row.notes.get("looks", "{}"))
    if not looks or not baseline:
        return []
    step = max(looks, key=int)
    found = []
    for name, loss in looks[step].items():
        rise = 100 * math.expm1(min(loss - baseline[name], 50.0)) if math.isfinite(loss) else math.inf
        if rise > settings.max_perplexity_loss:
            found.append(
                f"QAT harmed the model: at its last look, step {step}, the {name} perplexity lay {rise:.0f}% above the "
                f"model's as it came (accepted: {settings.max_perplexity_loss:g}%)"
            )
    if row.notes.get("ended", "").startswith("it diverged"):
        found.append(f"QAT harmed the model: {row.notes['ended']}")
    return found


def recovered_fraction(rows: Rows, dataset: str) -> tuple[float | None, str]:
    """(PTQ of the control - QAT) / (PTQ of the control - control) on the training text's perplexity, or why it is none.

    Only where the control learned something, held-out text tells, and PTQ of it measurably lost some of that.
    """
    if "control" not in rows:
        return None, "not defined, because no control was trained: what counts is the loss against the baseline"
    before, after = (held_out_losses(rows[name]) for name in ("baseline", "control"))
    text = VALIDATION if VALIDATION in before else GUARD
    if after[text] >= before[text]:
        loss, came = told_apart(after[text], before[text])
        beside = "that of the model as it came" if loss == came else f"the model as it came {came}"
        return None, f"not defined, because the control learned nothing: {text} loss {loss}, {beside}"
    wikitext = "wikitext-2" in {part.name for part in parse_mix(dataset)}
    metric = "wikitext2/perplexity" if wikitext else "domain/perplexity"
    if any(metric not in rows[name].metrics for name in ("control", "control-ptq", "qat")):
        return None, f"not defined, because {metric} was not measured"
    lost = next(
        loss
        for loss in losses(rows["control"].items, rows["control-ptq"].items, perplexity_margin=0.0, task_margin=0.0)
        if loss.metric == metric
    )
    if not lost.shown:
        return None, (
            f"not defined, because PTQ of the control loses nothing that could be measured: {metric} {lost.loss:+.2f}% "
            f"({lost.interval})"
        )
    control, rounded, trained = (rows[name].metrics[metric] for name in ("control", "control-ptq", "qat"))
    return (rounded - trained) / (rounded - control), ""


def summary_rows(
    rows: Rows, verdict: Verdict, model: str, scheme: str, ships: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The summary table: one row per variant, with what it lost against the baseline, which one is delivered, and what
    of that ships: `ships`, cells named `deploy/...`."""
    table = []
    for name, row in rows.items():
        cells: dict[str, Any] = {"model": model, "variant": name}
        cells["scheme"] = "none" if name in ("baseline", "control") else scheme
        cells |= headline(row.metrics)
        if name != "baseline":
            harmed = [loss for loss in verdict.losses[name] if loss.harmed]
            cells["verdict"] = "harmed" if harmed else "not harmed"
        cells["delivered"] = "yes" if name == verdict.delivered else "no"
        if name == verdict.delivered:
            cells |= ships
        table.append(cells)
    return table
